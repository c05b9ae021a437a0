"""Who is at an address: a TLS handshake of our own that reads the other side's certificate, or says why it can not.

Why: gRPC dials a node by its name, and an address found by mDNS or given as a seed has none yet; and of a handshake
that fails, gRPC only says that it failed.

Idea: the handshake shows this node's certificate and takes any. The certificate that comes is then read as every
certificate of the mesh is, and the handshake has proved that its key is there. In TLS 1.3 the other side judges ours
after our handshake is done, so its first byte is waited for: HTTP/2 servers speak first.

Does not: open a link. What was read is a hint: gRPC's own handshake proves it again.

Source: RFC 8446 (TLS 1.3), section 4.4.2.4; RFC 9113 (HTTP/2), section 3.4.
"""

import asyncio
import ssl

from mesh.certificates import CertificateError, Identity
from node import clock
from node.credentials import Credentials

NOT_LISTENING = "not-listening"
SILENT = "silent"
NO_TLS = "no-tls"
WRONG_MESH = "wrong-mesh"
EXPIRED = "expired"
NOT_YET_VALID = "not-yet-valid"
NOT_INVITED = "not-invited"
DENIED = "denied"


class HandshakeError(Exception):
    """`reason` is one of the words above; `said` is a sentence for people, without capital and full stop."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason
        self.said = said


async def identify(credentials: Credentials, host: str, port: int, timeout_s: float) -> Identity:
    """The member that answers at this address and takes this node's certificate. Raises `HandshakeError`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _identify(credentials, host, port)
    except TimeoutError as error:
        raise HandshakeError(SILENT, f"nothing answers within {timeout_s:g} s") from error


async def _identify(credentials: Credentials, host: str, port: int) -> Identity:
    try:
        context = credentials.context()
    except OSError as error:
        raise HandshakeError(NOT_INVITED, f"this node's own certificate can not be read: {error}") from error
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except ConnectionRefusedError as error:
        raise HandshakeError(NOT_LISTENING, "nobody listens there") from error
    except (ssl.SSLError, ConnectionError, EOFError) as error:
        raise HandshakeError(NO_TLS, "what listens there does not speak TLS, or hangs up") from error
    except OSError as error:
        raise HandshakeError(SILENT, f"it can not be reached: {error.strerror or error}") from error
    try:
        identity = _read(credentials, writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        try:
            accepted = await reader.read(1)
        except OSError:
            accepted = b""
        if not accepted:
            raise HandshakeError(NOT_INVITED, "it does not accept this node's certificate")
        return identity
    finally:
        writer.transport.abort()


def _read(credentials: Credentials, certificate: bytes | None) -> Identity:
    try:
        identity = credentials.roots.read(certificate or b"")
    except CertificateError as error:
        raise HandshakeError(WRONG_MESH, f"it does not belong to this mesh: {error}") from error
    now_s = clock.wall_clock_ms() / 1000
    if now_s > identity.not_after:
        days = (now_s - identity.not_after) / 86_400
        raise HandshakeError(EXPIRED, f"its certificate expired {days:.1f} days ago, by this machine's clock")
    if now_s < identity.not_before:
        raise HandshakeError(NOT_YET_VALID, "its certificate is not valid yet: the clocks differ")
    return identity
