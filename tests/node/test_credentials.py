"""Tests of node/credentials.py: real ports and channels; what each side must show, and renewal on both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.identity import NodeId
from node.credentials import Credentials
from node.handshake import identify
from scripts.throwaway import ThrowawayMesh

CALL = "/kith.test/Who"


class Who(grpc.GenericRpcHandler):
    """Answers with the caller's certificate, as gRPC shows it."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def who(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            [shown] = context.auth_context()["x509_pem_cert"]
            return bytes(shown)

        return grpc.unary_unary_rpc_method_handler(who)


@asynccontextmanager
async def port_of(credentials: Credentials) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Who(),))
    port = server.add_secure_port("127.0.0.1:0", credentials.server())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(channel: grpc.aio.Channel) -> bytes:
    async with channel:
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALL)
        return await unary(b"", timeout=5.0)


async def refused(channel: grpc.aio.Channel) -> bool:
    try:
        await call(channel)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


@pytest.fixture
def mesh() -> ThrowawayMesh:
    return ThrowawayMesh()


async def test_each_side_proves_who_it_is_and_another_name_is_not_answered(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    a, b = (mesh.enrol(tmp_path / name) for name in "ab")
    client = Credentials(a)
    async with port_of(Credentials(b)) as port:
        shown = await call(client.channel("127.0.0.1", port, b.key.node_id))
        assert shown == a.paths.certificate.read_bytes()
        assert await refused(client.channel("127.0.0.1", port, a.key.node_id))
        assert await refused(client.channel("127.0.0.1", port, NodeId("0" * 32)))


async def test_plain_text_no_certificate_another_mesh_and_an_ended_one_do_not_get_in(
    mesh: ThrowawayMesh, tmp_path: Path
) -> None:
    node = mesh.enrol(tmp_path / "node")
    name = node.key.node_id
    roots = node.paths.ca.read_bytes()
    options = (("grpc.ssl_target_name_override", f"{name}.kith"),)
    stranger = ThrowawayMesh().enrol(tmp_path / "stranger")
    trusting = ThrowawayMesh().enrol(tmp_path / "trusting")
    trusting.roots = node.roots  # it takes the node for what it is; the node does not take it
    ended = mesh.enrol(tmp_path / "ended", starts_s=-172_800.0, days=1.0)
    async with port_of(Credentials(node)) as port:
        at = f"127.0.0.1:{port}"
        assert await refused(grpc.aio.insecure_channel(at))
        assert await refused(grpc.aio.secure_channel(at, grpc.ssl_channel_credentials(roots), options=options))
        for enrolment in (stranger, trusting, ended):
            assert await refused(Credentials(enrolment).channel("127.0.0.1", port, name))


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    a, b = (mesh.enrol(tmp_path / name) for name in "ab")
    client, server = Credentials(a), Credentials(b)
    async with port_of(server) as port:
        before = await call(client.channel("127.0.0.1", port, b.key.node_id))
        for enrolment, credentials in ((a, client), (b, server)):
            enrolment.renewed(mesh.certificate(enrolment.key.public_key, days=20.0))
            credentials.refresh()
        assert await call(client.channel("127.0.0.1", port, b.key.node_id)) != before
        for _ in range(2):
            assert await identify(client, "127.0.0.1", port, 3.0) == b.identity
