"""Tests of node/handshake.py: who is at an address, or exactly why that can not be told."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from mesh.certificates import Role
from node import handshake
from node.credentials import Credentials
from node.handshake import HandshakeError, identify
from scripts.throwaway import ThrowawayMesh

WITHIN_S = 3.0


@asynccontextmanager
async def port_of(credentials: Credentials) -> AsyncIterator[int]:
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", credentials.server())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def reason(credentials: Credentials, port: int, within_s: float = WITHIN_S) -> str:
    with pytest.raises(HandshakeError) as caught:
        await identify(credentials, "127.0.0.1", port, within_s)
    assert caught.value.said
    assert str(caught.value) == caught.value.said
    return caught.value.reason


@pytest.fixture
def mesh() -> ThrowawayMesh:
    return ThrowawayMesh()


@pytest.fixture
def me(mesh: ThrowawayMesh, tmp_path: Path) -> Credentials:
    return Credentials(mesh.enrol(tmp_path / "me"))


async def test_a_member_is_read_with_its_role(mesh: ThrowawayMesh, me: Credentials, tmp_path: Path) -> None:
    other = mesh.enrol(tmp_path / "other", Role.WORKER)
    async with port_of(Credentials(other)) as port:
        assert await identify(me, "127.0.0.1", port, WITHIN_S) == other.identity


async def test_another_mesh_is_told_from_our_own(me: Credentials, tmp_path: Path) -> None:
    async with port_of(Credentials(ThrowawayMesh().enrol(tmp_path / "other"))) as port:
        assert await reason(me, port) == handshake.WRONG_MESH


@pytest.mark.parametrize(
    ("starts_s", "days", "expected"), [(-172_800.0, 1.0, handshake.EXPIRED), (86_400.0, 1.0, handshake.NOT_YET_VALID)]
)
async def test_a_certificate_outside_its_time_is_told(
    mesh: ThrowawayMesh, me: Credentials, tmp_path: Path, starts_s: float, days: float, expected: str
) -> None:
    other = mesh.enrol(tmp_path / "other", starts_s=starts_s, days=days)
    async with port_of(Credentials(other)) as port:
        assert await reason(me, port) == expected


@pytest.mark.parametrize("ours", ["expired", "of another mesh, which trusts both"])
async def test_a_node_whose_own_certificate_is_not_taken_is_told_so(
    mesh: ThrowawayMesh, tmp_path: Path, ours: str
) -> None:
    other = Credentials(mesh.enrol(tmp_path / "other"))
    if ours == "expired":
        mine = mesh.enrol(tmp_path / "mine", starts_s=-172_800.0, days=1.0)
        expected = handshake.OWN_EXPIRED
    else:
        mine = ThrowawayMesh().enrol(tmp_path / "mine")
        mine.roots = other.roots
        expected = handshake.NOT_INVITED
    async with port_of(other) as port:
        assert await reason(Credentials(mine), port) == expected


async def test_a_closed_port_a_silent_one_and_one_without_tls_are_told_apart(me: Credentials) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert await reason(me, taken.getsockname()[1]) == handshake.NOT_LISTENING
        taken.listen()  # nobody accepts
        assert await reason(me, taken.getsockname()[1], 0.2) == handshake.SILENT

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for serve in (greet, hang_up):
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as stranger:
            assert await reason(me, stranger.sockets[0].getsockname()[1]) == handshake.NO_TLS


async def test_an_older_tls_is_not_spoken(mesh: ThrowawayMesh, me: Credentials, tmp_path: Path) -> None:
    other = mesh.enrol(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(other.paths.certificate, other.paths.key)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        assert await reason(me, server.sockets[0].getsockname()[1]) == handshake.NO_TLS
