"""Tests of node/cli/reaching.py: one verdict a test, each from real sockets."""

import asyncio
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.certificates import SKEW_S, Role
from mesh.identity import NodeId
from mesh.wire import mesh_pb2_grpc
from node import clock, interfaces
from node.callers import Callers
from node.cli import reaching
from node.cli.finding import Finding
from node.cli.way import way
from node.credentials import Credentials
from node.enrolment import Enrolment
from node.errors import ExitCode
from node.interfaces import Interface
from node.joining.throwaway_tls import server_context
from node.mesh_service import MeshService
from node.refused import Refused
from scripts.daemons import Daemon, formed
from scripts.throwaway import ThrowawayMesh

DAY_S = 86_400.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Counting:
    """What MeshService needs of an engine here."""

    def of(self, agent: str) -> "Counting":
        return self

    async def count_tokens(self, who: NodeId, texts: list[str]) -> list[int]:
        return []


class Places:
    """What can be at an address. Everything is closed at the end."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.mesh = ThrowawayMesh()
        self.other_mesh = ThrowawayMesh()

    async def enrolled(self, name: str, mesh: ThrowawayMesh | None = None, **how: Any) -> Enrolment:
        return await asyncio.to_thread((mesh or self.mesh).enrol, self._folder / name, **how)

    async def node(self, enrolment: Enrolment, denied: Callable[[NodeId], bool] = lambda _: False) -> int:
        """A mesh port with its real callers and service; where it listens."""
        server = grpc.aio.server(interceptors=[Callers(lambda: enrolment.roots, denied, Refused(lambda *_: None))])
        missing: Any = None
        engine: Any = Counting()
        mesh_pb2_grpc.add_MeshServicer_to_server(MeshService(missing, engine, missing, missing), server)
        port = server.add_secure_port("127.0.0.1:0", Credentials(enrolment).server())
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return port

    async def program(self, handler: Handler, context: ssl.SSLContext | None = None) -> int:
        server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
        self._stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def look(self, me: str, port: int, host: str = "127.0.0.1") -> list[Finding]:
        folder = self._folder / me
        folder.mkdir(exist_ok=True)
        return [finding async for finding in reaching.examine(folder, f"{host}:{port}")]

    async def verdict(self, me: str, port: int) -> Finding:
        """The only thing that is wrong."""
        [bad] = [finding for finding in await self.look(me, port) if finding.level != "ok"]
        assert bad.level == "fail"
        assert bad.remedy
        return bad


@pytest.fixture
async def places(tmp_path: Path) -> AsyncIterator[Places]:
    async with AsyncExitStack() as stack:
        yield Places(tmp_path, stack)


@pytest.mark.parametrize("role", Role)
async def test_a_member_that_answers_is_well(places: Places, role: Role) -> None:
    port = await places.node(await places.enrolled("there"))
    await places.enrolled("me", role=role)
    found = await places.look("me", port)
    assert {(one.check, one.level) for one in found} == {
        ("connection", "ok"),
        ("handshake", "ok"),
        ("membership", "ok"),
        ("clock", "ok"),
    }


async def test_this_node_itself_is_recognised(places: Places) -> None:
    port = await places.node(await places.enrolled("me"))
    assert any("this node itself" in one.message for one in await places.look("me", port))


async def test_wrong_mesh_is_named_with_both(places: Places) -> None:
    port = await places.node(await places.enrolled("there", places.other_mesh))
    await places.enrolled("me")
    bad = await places.verdict("me", port)
    assert "wrong mesh" in bad.message
    assert places.mesh.mesh_id[:12] in bad.message
    assert places.other_mesh.mesh_id[:12] in bad.message


async def test_their_certificate_has_expired(places: Places) -> None:
    port = await places.node(await places.enrolled("there", starts_s=-5 * DAY_S, days=2))
    await places.enrolled("me")
    bad = await places.verdict("me", port)
    assert "its certificate expired 3.0 days ago" in bad.message
    assert "kith invite" in bad.remedy


async def test_our_certificate_has_expired(places: Places) -> None:
    port = await places.node(await places.enrolled("there"))
    await places.enrolled("me", starts_s=-5 * DAY_S, days=2)
    own, refused = [one for one in await places.look("me", port) if one.level == "fail"]
    assert "this node's certificate expired 3 days ago" in own.message
    assert "it refuses this node" in refused.message
    assert "kith join" in refused.remedy


async def test_this_clock_is_behind_and_by_how_much(places: Places) -> None:
    port = await places.node(await places.enrolled("there", starts_s=7 * DAY_S))
    await places.enrolled("me")
    bad = await places.verdict("me", port)
    assert bad.check == "clock"
    assert "at least 7 days behind" in bad.message


async def test_our_own_certificate_tells_that_this_clock_is_behind(places: Places) -> None:
    await places.enrolled("me", starts_s=3 * DAY_S)
    port = await places.node(await places.enrolled("there"))
    own, refused = [one for one in await places.look("me", port) if one.level == "fail"]
    assert "at least 3 days behind" in own.message
    assert "not valid yet" in refused.message


async def test_their_clock_is_said_to_the_second(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    port = await places.node(await places.enrolled("there"))
    await places.enrolled("me")
    monkeypatch.setattr(clock, "wall_clock_ms", lambda: int((time.time() + 600) * 1000))
    bad = await places.verdict("me", port)
    assert bad.check == "clock"
    assert "10 minutes ahead of this one" in bad.message


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [(0.3, "ok", "agree"), (-60.0, "warn", "60 s behind"), (SKEW_S + 1, "fail", "new certificates are refused")],
)
def test_what_a_difference_of_clocks_means(ahead_s: float, level: str, words: str) -> None:
    found = reaching.clocks(ahead_s, 0.01)
    assert found.level == level
    assert words in found.message


async def test_a_node_in_no_mesh_is_not_invited(places: Places) -> None:
    port = await places.node(await places.enrolled("there"))
    bad = await places.verdict("alone", port)
    assert "this one is in no mesh: it is not invited" in bad.message
    assert "kith join CODE" in bad.remedy


async def test_a_certificate_refused_for_no_reason_seen_here_is_their_clock(places: Places) -> None:
    """The other machine lives in the future: a port that trusts our mesh and finds our certificate ended."""
    there = await places.enrolled("there")
    await places.enrolled("me")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(there.paths.certificate, there.paths.key)
    context.set_alpn_protocols(["h2"])

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    bad = await places.verdict("me", await places.program(refuse, context))
    assert bad.check == "clock"
    assert "it refuses this node's certificate" in bad.message


async def test_a_revoked_node_hears_that_it_is_denied(places: Places) -> None:
    me = await places.enrolled("me")
    port = await places.node(await places.enrolled("there"), denied=lambda node_id: node_id == me.key.node_id)
    bad = await places.verdict("me", port)
    assert bad.check == "membership"
    assert bad.message.startswith("denied")


async def test_a_closed_port(places: Places) -> None:
    await places.enrolled("me")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes it meanwhile
        bad = await places.verdict("me", taken.getsockname()[1])
    assert "nobody listens on port" in bad.message


async def test_a_machine_that_does_not_answer(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose queue is full drops what comes, as a firewall does."""
    monkeypatch.setattr(reaching, "CONNECT_S", 0.4)
    await places.enrolled("me")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        at = deaf.getsockname()
        filling = [socket.socket() for _ in range(4)]
        try:
            for one in filling:
                one.setblocking(False)
                one.connect_ex(at)
            bad = await places.verdict("me", at[1])
        finally:
            for one in filling:
                one.close()
    assert "no answer from" in bad.message
    assert "firewall" in bad.message


async def test_a_web_server(places: Places) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    await places.enrolled("me")
    assert "a web server answers" in (await places.verdict("me", await places.program(web))).message


async def test_a_program_that_says_something_else(places: Places) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    await places.enrolled("me")
    assert "something else listens" in (await places.verdict("me", await places.program(greet))).message


async def test_a_program_that_hangs_up(places: Places) -> None:
    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    await places.enrolled("me")
    assert "hangs up" in (await places.verdict("me", await places.program(end))).message


async def test_a_program_that_hangs(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "HANDSHAKE_S", 0.3)
    over = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    await places.enrolled("me")
    assert "does not answer" in (await places.verdict("me", await places.program(wait))).message
    over.set()


async def test_the_join_port_is_told_from_the_mesh_port(places: Places) -> None:
    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    await places.enrolled("me")
    bad = await places.verdict("me", await places.program(end, server_context()[0]))
    assert "join port" in bad.message


@pytest.mark.parametrize("text", ["nonsense", "127.0.0.1", "127.0.0.1:0", "::1:80"])
async def test_what_is_no_address(tmp_path: Path, text: str) -> None:
    [bad] = [finding async for finding in reaching.examine(tmp_path, text)]
    assert "is no HOST:PORT" in bad.message


async def test_a_name_that_is_none(tmp_path: Path) -> None:
    bad = [finding async for finding in reaching.examine(tmp_path, "no.such.host.invalid:80")][-1]
    assert "can not be resolved" in bad.message


@pytest.mark.parametrize(
    ("interface", "there", "level", "words"),
    [
        ("eth0", "192.0.2.9", "ok", "in the same subnet"),
        ("eth0", "198.51.100.9", "warn", "in another subnet"),
        ("wg0", "192.0.2.9", "warn", "a tunnel"),
        ("docker0", "192.0.2.9", "warn", "is not used unless it is named"),
    ],
)
def test_what_is_told_of_the_way(
    monkeypatch: pytest.MonkeyPatch, interface: str, there: str, level: str, words: str
) -> None:
    import ifaddr

    address = interfaces.resolve("192.0.2.1")
    monkeypatch.setattr(interfaces, "interfaces", lambda: [Interface(interface, 2, (address,))])
    adapter = SimpleNamespace(ips=[SimpleNamespace(ip="192.0.2.1", network_prefix=24)])
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [adapter])
    first = next(iter(way(there, "192.0.2.1")))
    assert (first.level, words in first.message) == (level, True), first


def kith_doctor(node: Daemon, address: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(node.data_dir), "doctor", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_command_between_two_daemons_before_and_after_one_is_revoked(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    mesh = ThrowawayMesh()
    for name, role in (("there", Role.ISSUER), ("me", Role.NODE)):
        mesh.enrol(tmp_path / name, role)
    there = daemon(name="there", alone=True)
    at = asyncio.run(there.ready(engine=False)).addresses[0]
    address = f"{at.host}:{at.port}"
    me = daemon("--seed", address, name="me", alone=True)
    asyncio.run(formed([there, me]))
    code, said = kith_doctor(me, address)
    assert (code, "it works for this node" in said) == (ExitCode.OK, True), said

    async def revoke() -> None:
        async with there.client() as client:
            await client.revoke(mesh.enrol(me.data_dir).key.node_id)

    asyncio.run(revoke())
    code, said = kith_doctor(me, address)
    assert (code, "denied: it knows this node" in said) == (ExitCode.FAILED, True), said
    assert "→" in said
