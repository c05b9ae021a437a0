"""Tests of node/credentials.py: real ports and channels; what each side must show, and renewal on both."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mesh.certificates import CertificateError, tls_name_of
from node.credentials import Credentials
from node.enrolment import Enrolment
from node.handshake import HandshakeError, identify
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
        shown = await call(client.channel("127.0.0.1", port, b.identity))
        assert shown == a.paths.certificate.read_bytes()
        assert await refused(client.channel("127.0.0.1", port, a.identity))
        assert await refused(client.channel("127.0.0.1", port, mesh.enrol(tmp_path / "c").identity))


async def test_who_holds_the_ca_key_does_not_answer_in_a_nodes_place(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    """It can write every name of the node into a certificate for a key of its own, and TLS would take that."""
    client, node, issuer = (mesh.enrol(tmp_path / name) for name in ("client", "node", "issuer"))
    forged = forged_certificate(mesh, node, issuer)
    with pytest.raises(CertificateError):
        client.roots.read(forged)
    true = issuer.identity
    issuer.identity = replace(node.identity, certificate=forged, public_key=true.public_key)
    async with port_of(Credentials(issuer)) as port:
        roots, own = node.paths.ca.read_bytes(), (client.paths.key.read_bytes(), client.paths.certificate.read_bytes())
        named = (("grpc.ssl_target_name_override", tls_name_of(node.key.node_id)),)
        gullible = grpc.aio.secure_channel(
            f"127.0.0.1:{port}", grpc.ssl_channel_credentials(roots, *own), options=named
        )
        assert await call(gullible), "who trusts all that the CA signed would be deceived"
        assert await refused(Credentials(client).channel("127.0.0.1", port, node.identity))
        with pytest.raises(HandshakeError, match="its names"):
            await identify(Credentials(client), "127.0.0.1", port, 3.0)


def forged_certificate(mesh: ThrowawayMesh, node: Enrolment, key_of: Enrolment) -> bytes:
    """The node's certificate with another key in it, signed by the CA."""
    true = x509.load_der_x509_certificate(node.identity.certificate)
    builder = x509.CertificateBuilder(
        true.issuer,
        true.subject,
        key_of.private_key.public_key(),
        true.serial_number,
        true.not_valid_before_utc,
        true.not_valid_after_utc,
        list(true.extensions),
    )
    return builder.sign(mesh.authority.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def test_nothing_of_the_node_that_is_dialled_is_said_in_clear(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    a, b = (mesh.enrol(tmp_path / name) for name in "ab")
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read(10_000))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        assert await refused(Credentials(a).channel("127.0.0.1", port, b.identity))
        with pytest.raises(HandshakeError):
            await identify(Credentials(a), "127.0.0.1", port, 3.0)
    assert heard.qsize() >= 2
    while not heard.empty():
        hello = heard.get_nowait()
        assert hello[0] == 22, "a TLS handshake"
        node_id = b.key.node_id
        for said in (node_id.encode(), bytes.fromhex(node_id)[:12], tls_name_of(node_id).encode(), b"kith"):
            assert said not in hello


async def test_a_certificate_of_an_early_version_is_still_dialled(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    """It lacks the address; its node is asked for by name until it has a new one."""
    a, b = (mesh.enrol(tmp_path / name) for name in "ab")
    old = early_certificate(mesh, b)
    b.renewed(old)
    assert not b.identity.dialable
    assert b.identity.renewal_due(time.time())
    async with port_of(Credentials(b)) as port:
        there = await identify(Credentials(a), "127.0.0.1", port, 3.0)
        assert there == b.identity
        assert await call(Credentials(a).channel("127.0.0.1", port, there))


def early_certificate(mesh: ThrowawayMesh, node: Enrolment) -> bytes:
    """As the CA wrote them before ids stood in them as addresses."""
    true = x509.load_der_x509_certificate(node.identity.certificate)
    builder = x509.CertificateBuilder(
        true.issuer, true.subject, node.private_key.public_key(), 7, true.not_valid_before_utc, true.not_valid_after_utc
    )
    for extension in true.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([name for name in value if not isinstance(name, x509.IPAddress)])
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(mesh.authority.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def test_plain_text_no_certificate_another_mesh_and_an_ended_one_do_not_get_in(
    mesh: ThrowawayMesh, tmp_path: Path
) -> None:
    node = mesh.enrol(tmp_path / "node")
    roots = node.paths.ca.read_bytes()
    options = (("grpc.ssl_target_name_override", tls_name_of(node.key.node_id)),)
    stranger = ThrowawayMesh().enrol(tmp_path / "stranger")
    trusting = ThrowawayMesh().enrol(tmp_path / "trusting")
    trusting.roots = node.roots  # it takes the node for what it is; the node does not take it
    ended = mesh.enrol(tmp_path / "ended", starts_s=-172_800.0, days=1.0)
    async with port_of(Credentials(node)) as port:
        at = f"127.0.0.1:{port}"
        assert await refused(grpc.aio.insecure_channel(at))
        assert await refused(grpc.aio.secure_channel(at, grpc.ssl_channel_credentials(roots), options=options))
        for enrolment in (stranger, trusting, ended):
            assert await refused(Credentials(enrolment).channel("127.0.0.1", port, node.identity))


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(mesh: ThrowawayMesh, tmp_path: Path) -> None:
    a, b = (mesh.enrol(tmp_path / name) for name in "ab")
    client, server = Credentials(a), Credentials(b)
    async with port_of(server) as port:
        before = await call(client.channel("127.0.0.1", port, b.identity))
        for enrolment, credentials in ((a, client), (b, server)):
            enrolment.renewed(mesh.certificate(enrolment.key.public_key, days=20.0))
            credentials.refresh()
        assert await call(client.channel("127.0.0.1", port, b.identity)) != before
        for _ in range(2):
            assert await identify(client, "127.0.0.1", port, 3.0) == b.identity
