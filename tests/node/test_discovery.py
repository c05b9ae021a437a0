"""Discovery through real multicast on loopback."""

import asyncio
import datetime
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_address
from types import SimpleNamespace
from typing import cast

import pytest
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf._cache import DNSCache
from zeroconf._dns import DNSPointer
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from node import discovery as discovery_module
from node import multicast
from node.discovery import CANDIDATES_MAX, SERVICE_TYPE, Discovery, daily_tag, utc_today
from node.hellos import PROTOCOL_VERSION_MIN
from node.interfaces import Interface

LOG = logging.getLogger("test.discovery")
LOOPBACK = Interface("lo", 1, (ip_address("127.0.0.1"),))
FOUND_WITHIN_S = 5.0
MESH = "0123456789abcdef0123456789abcdef"


def multicast_problem() -> str:
    """Why multicast on loopback is impossible here; empty where it works. Looks for itself, without the library."""
    group, port = "224.0.0.251", 0
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.bind(("", port))
            membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(2.0)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"kith", (group, receiver.getsockname()[1]))
            receiver.recv(16)
        except OSError as error:
            return str(error) or type(error).__name__
    return ""


PROBLEM = multicast_problem()
needs_multicast = pytest.mark.skipif(bool(PROBLEM), reason=f"no multicast on loopback: {PROBLEM}")


class Nodes:
    """Starts Discovery objects and stops them all; their own service type keeps other nodes of this machine out."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.service_type = f"_kt{secrets.token_hex(4)}._tcp.local."

    async def start(
        self, port: int, mesh_id: str = MESH, today: Callable[[], datetime.date] = utc_today
    ) -> tuple[Discovery, "asyncio.Queue[tuple[str, int]]"]:
        found: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        node = Discovery(
            str(port),
            port,
            ["127.0.0.1"],
            [LOOPBACK],
            lambda host, port: found.put_nowait((host, port)),
            LOG,
            mesh_id,
            service_type=self.service_type,
            today=today,
        )
        self._stack.push_async_callback(node.stop)
        assert await node.start() == ""
        return node, found

    async def advertise(self, name: str, port: int, addresses: list[str], version: str) -> None:
        """An advert as a stranger may send it."""
        stranger = AsyncZeroconf(interfaces=["127.0.0.1"])
        self._stack.push_async_callback(stranger.async_close)
        info = AsyncServiceInfo(
            self.service_type,
            f"{name}.{self.service_type}",
            port=port,
            properties={"txtvers": "1", "v": version, "m": daily_tag(MESH, utc_today())},
            server=f"{name}.local.",
            parsed_addresses=addresses,
        )
        await (await stranger.async_register_service(info, cooperating_responders=True))


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(stack)


async def take(found: "asyncio.Queue[tuple[str, int]]", count: int) -> list[tuple[str, int]]:
    async with asyncio.timeout(FOUND_WITHIN_S):
        return sorted([await found.get() for _ in range(count)])


@needs_multicast
async def test_two_cold_starters_find_each_other(nodes: Nodes) -> None:
    (_, found_by_a), (_, found_by_b) = await asyncio.gather(nodes.start(7001), nodes.start(7002))
    assert await take(found_by_a, 1) == [("127.0.0.1", 7002)]
    assert await take(found_by_b, 1) == [("127.0.0.1", 7001)]


@needs_multicast
async def test_a_late_comer_finds_all_who_are_there_each_once_and_never_itself(nodes: Nodes) -> None:
    for port in (7001, 7002, 7003):
        await nodes.start(port)
    _, found = await nodes.start(7004)
    assert await take(found, 3) == [("127.0.0.1", port) for port in (7001, 7002, 7003)]
    first, found_by_first = await nodes.start(7005)
    await take(found_by_first, 4)
    assert await take(found, 1) == [("127.0.0.1", 7005)]
    await first.stop()
    await nodes.start(7005)
    assert await take(found, 1) == [("127.0.0.1", 7005)], "a peer that was started again is reported again"
    assert found.empty()


@needs_multicast
async def test_an_advert_says_nothing_about_the_machine_or_its_user(nodes: Nodes) -> None:
    node, _ = await nodes.start(7001)
    async with AsyncZeroconf(interfaces=["127.0.0.1"]) as outsider:
        info = await outsider.async_get_service_info(nodes.service_type, node.instance)
    assert info is not None
    tag = daily_tag(MESH, utc_today())
    assert info.decoded_properties == {"txtvers": "1", "v": str(PROTOCOL_VERSION_MIN), "m": tag}
    assert len(tag) == 8
    assert tag not in MESH
    label = node.instance.partition(".")[0]
    assert len(label) == 8
    assert int(label, 16) >= 0
    assert info.server == f"kith-{label}.local."
    assert info.parsed_addresses() == ["127.0.0.1"]


@needs_multicast
async def test_only_nodes_of_the_same_mesh_are_found_also_where_the_clocks_differ_by_a_day(nodes: Nodes) -> None:
    _, found = await nodes.start(7001)
    await nodes.start(7002, mesh_id="f" * 32)
    for port, days in ((7003, -2), (7004, 2), (7005, -1), (7006, 1)):
        day = utc_today() + datetime.timedelta(days)
        await nodes.start(port, today=lambda day=day: day)  # type: ignore[misc]
    assert await take(found, 2) == [("127.0.0.1", 7005), ("127.0.0.1", 7006)]
    assert found.empty()


@needs_multicast
async def test_a_new_day_is_advertised_with_its_own_tag(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "DAY_LOOK_S", 0.02)
    day = utc_today() - datetime.timedelta(5)
    _, found = await nodes.start(7001)
    await nodes.start(7002, today=lambda: day)
    _, found_by_other = await nodes.start(7003)
    assert await take(found, 1) == [("127.0.0.1", 7003)]
    day = utc_today()
    assert await take(found, 1) == [("127.0.0.1", 7002)]
    assert await take(found_by_other, 2) == [("127.0.0.1", 7001), ("127.0.0.1", 7002)]


@needs_multicast
async def test_adverts_that_make_no_sense_are_left_alone(nodes: Nodes) -> None:
    _, found = await nodes.start(7001)
    await nodes.advertise("other-version", 7002, ["127.0.0.1"], "999")
    await nodes.advertise("elsewhere", 7003, ["192.0.2.1", "0.0.0.0", "224.0.0.1"], str(PROTOCOL_VERSION_MIN))
    await nodes.advertise("good", 7004, ["127.0.0.1"], str(PROTOCOL_VERSION_MIN))
    assert await take(found, 1) == [("127.0.0.1", 7004)]
    assert found.empty()


@pytest.mark.parametrize(
    ("ours", "theirs", "dialable"),
    [
        ("192.168.1.7", "192.168.1.8", True),
        ("192.168.1.7", "127.0.0.1", False),
        ("192.168.1.7", "::1", False),
        ("192.168.1.7", "0.0.0.0", False),
        ("192.168.1.7", "224.0.0.251", False),
        ("192.168.1.7", "fe80::8", False),
        ("192.168.1.7", "fe80::8%3", True),
        ("192.168.1.7", "fd00::8", True),
        ("192.168.1.7", "no address", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.168.1.8", False),
    ],
)
def test_which_addresses_are_worth_a_dial(ours: str, theirs: str, dialable: bool) -> None:
    node = Discovery("n", 7001, [ours], [LOOPBACK], lambda host, port: None, LOG, MESH)
    assert node._dialable(theirs) == dialable


def test_a_flood_of_adverts_is_bounded() -> None:
    found = []
    node = Discovery("n", 7001, ["10.0.0.1"], [LOOPBACK], lambda host, port: found.append((host, port)), LOG, MESH)
    for number in range(3 * CANDIDATES_MAX):
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"x{number}.{SERVICE_TYPE}",
            port=7000,
            properties={"v": str(PROTOCOL_VERSION_MIN), "m": daily_tag(MESH, utc_today())},
            parsed_addresses=[f"10.0.{number}.{last}" for last in range(1, 20)],
        )
        node._report(info)
    assert len(node._given) == CANDIDATES_MAX
    assert len(found) == 3 * CANDIDATES_MAX * discovery_module.ADDRESSES_PER_ADVERT_MAX


@pytest.mark.parametrize(
    "name",
    [
        *("evil.example.", "local.", "", f" {SERVICE_TYPE}", SERVICE_TYPE, "x" * 300),
        *(f"{'x' * 64}.{SERVICE_TYPE}", f"a b.{SERVICE_TYPE}", f"a.b.{SERVICE_TYPE}", f"\ufffd.{SERVICE_TYPE}"),
    ],
)
def test_a_packet_with_an_odd_name_is_left_alone(name: str) -> None:
    """zeroconf hands any name on, keeps for ever what a handler raised at, and repeats names in its questions."""
    node = Discovery("n", 7001, ["10.0.0.1"], [LOOPBACK], lambda host, port: None, LOG, MESH)
    cache = DNSCache()
    odd, plain = (DNSPointer(SERVICE_TYPE, 12, 1, 4500, alias) for alias in (name, f"good.{SERVICE_TYPE}"))
    cache.async_add_records([odd, plain])
    node._on_change(cast(Zeroconf, SimpleNamespace(cache=cache)), SERVICE_TYPE, name, ServiceStateChange.Added)
    assert not node._lookups
    assert cache.get_all_by_details(SERVICE_TYPE, 12, 1) == [plain]


@pytest.mark.parametrize("version", ["\u00b2", "", "-1", "1" * 200, "x", None])
def test_an_odd_version_is_left_alone(version: str | None) -> None:
    found = []
    node = Discovery("n", 7001, ["10.0.0.1"], [LOOPBACK], lambda host, port: found.append(host), LOG, MESH)
    properties = {"m": daily_tag(MESH, utc_today()), **({} if version is None else {"v": version})}
    addresses = ["10.0.0.2"]
    node._report(
        AsyncServiceInfo(
            SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=7000, properties=properties, parsed_addresses=addresses
        )
    )
    assert not found


async def test_without_an_interface_there_is_a_reason_and_no_exception() -> None:
    node = Discovery("n", 7001, ["192.0.2.1"], [], lambda host, port: None, LOG, MESH)
    assert await node.start() == "no interface for multicast DNS (interfaces chosen: none)"
    await node.stop()


async def test_sockets_that_are_refused_are_a_reason_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(multicast, "Speaker", refuse)
    node = Discovery("n", 7001, ["127.0.0.1"], [LOOPBACK], lambda host, port: None, LOG, MESH)
    assert await node.start() == "multicast DNS can not be used here: Address already in use"
    await node.stop()


async def test_an_interface_that_went_away_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    vanished = Interface("eth9", 9999, (ip_address("192.0.2.77"), ip_address("fe80::7%eth9")))
    node = Discovery("n", 7001, ["192.0.2.77"], [vanished], lambda host, port: None, LOG, MESH)
    assert await node.start() == "no interface for multicast DNS (interfaces chosen: eth9)"
    assert caplog.text.count("mDNS: not on eth9") == 2
    await node.stop()
    await node.stop()


@needs_multicast
async def test_one_interface_that_went_away_does_not_stop_the_others() -> None:
    vanished = Interface("eth9", 9999, (ip_address("192.0.2.77"),))
    node = Discovery("n", 7001, ["127.0.0.1"], [vanished, LOOPBACK], lambda host, port: None, LOG, MESH)
    try:
        assert await node.start() == ""
    finally:
        await node.stop()


async def test_no_answer_to_its_own_advert_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "SELF_HEARD_S", 0.05)
    node = Discovery("n", 7001, ["127.0.0.1"], [LOOPBACK], lambda host, port: None, LOG, MESH)
    monkeypatch.setattr(node, "_on_change", lambda **_: None)
    try:
        assert await node.start() == "multicast does not work on lo"
    finally:
        await node.stop()
