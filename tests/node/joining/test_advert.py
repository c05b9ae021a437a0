"""Invites found by real multicast on loopback."""

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from node.joining.advert import Adverts, find
from tests.node.test_discovery import LOOPBACK, needs_multicast

LOG = logging.getLogger("test.advert")


class Network:
    """Doors of one test; their own service type keeps other doors of this machine out."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.service_type = f"_kj{secrets.token_hex(4)}._tcp.local."

    def door(self, *addresses: str) -> Adverts:
        adverts = Adverts(lambda: addresses or ["127.0.0.1"], lambda: [LOOPBACK], LOG, self.service_type)
        self._stack.push_async_callback(adverts.close)
        return adverts

    async def find(self, invite: str, timeout_s: float = 5.0) -> list[list[tuple[str, int]]]:
        return await find(invite, [LOOPBACK], LOG, timeout_s, self.service_type)


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    async with AsyncExitStack() as stack:
        yield Network(stack)


@needs_multicast
async def test_an_invite_is_found_by_nameplate_and_by_id(network: Network) -> None:
    door = network.door()
    assert await door.show("abcdef", "7", 4001)
    assert await network.find("7") == [[("127.0.0.1", 4001)]]
    assert await network.find("abcdef") == [[("127.0.0.1", 4001)]]
    assert await network.find("8", 0.5) == []


@needs_multicast
async def test_an_invite_that_ended_is_not_found(network: Network) -> None:
    door = network.door()
    await door.show("abcdef", "7", 4001)
    await door.show("uvwxyz", "", 4001)
    await door.hide("abcdef")
    assert await network.find("7", 0.5) == []
    assert await network.find("uvwxyz") == [[("127.0.0.1", 4001)]]
    await door.hide("uvwxyz")
    assert await network.find("uvwxyz", 0.5) == []


@needs_multicast
async def test_two_with_the_same_nameplate_are_both_reported(network: Network) -> None:
    one, other = network.door(), network.door("127.0.0.2")
    await one.show("abcdef", "7", 4001)
    await other.show("uvwxyz", "7", 4002)
    assert sorted(await network.find("7")) == [[("127.0.0.1", 4001)], [("127.0.0.2", 4002)]]


@needs_multicast
async def test_an_advert_tells_nothing_of_mesh_or_machine(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[AsyncServiceInfo] = []

    def made(type_: str, name: str, **given: Any) -> AsyncServiceInfo:
        told.append(AsyncServiceInfo(type_, name, **given))
        return told[-1]

    monkeypatch.setattr("node.joining.advert.AsyncServiceInfo", made)
    door = network.door()
    await door.show("abcdef", "7", 4001)
    [info] = told
    assert info.decoded_properties == {"txtvers": "1", "v": "1", "t": "abcdef", "n": "7"}
    assert info.name.split(".")[0] in (info.server or "")
    assert len(info.name.split(".")[0]) == 8


async def test_without_an_interface_nothing_is_advertised_or_found() -> None:
    adverts = Adverts(lambda: ["192.0.2.1"], list, LOG)
    assert not await adverts.show("abcdef", "7", 4001)
    await adverts.hide("abcdef")
    assert await find("7", [], LOG, 0.1) == []
