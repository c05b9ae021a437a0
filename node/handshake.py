"""Who is at an address: a TLS handshake of our own that reads the other side's certificate, or says why it can not.

Why: gRPC dials a node by its name, and an address found by mDNS or given as a seed has none yet; and of a handshake
that fails, gRPC only says that it failed.

Idea: the handshake shows this node's certificate and takes any. The certificate that comes is then read as every
certificate of the mesh is, and the handshake has proved that its key is there. In TLS 1.3 the other side judges ours
after our handshake is done, so its first byte is waited for: HTTP/2 servers speak first. A gRPC server that refuses
hangs up without a word, so why it refused is told by what is known here: our own certificate's time.

Does not: open a link. What was read is a hint: gRPC's own handshake proves it again.

Source: RFC 8446 (TLS 1.3), section 4.4.2.4; RFC 9113 (HTTP/2), section 3.4.
"""

import asyncio
import contextlib
import ssl
from typing import NamedTuple

from mesh.certificates import CertificateError, Identity
from node import clock
from node.credentials import Credentials

NOT_LISTENING = "not-listening"
SILENT = "silent"
NO_TLS = "no-tls"
WRONG_MESH = "wrong-mesh"
EXPIRED = "expired"
NOT_YET_VALID = "not-yet-valid"
OWN_EXPIRED = "own-expired"
OWN_NOT_YET_VALID = "own-not-yet-valid"
NOT_INVITED = "not-invited"
DENIED = "denied"


class HandshakeError(Exception):
    """`reason` is one of the words above; `said` is a sentence for people, without capital and full stop."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason
        self.said = said


class Seen(NamedTuple):
    """Of a handshake: the other side's certificate (DER), and whether it went on after it had seen ours.

    `accepted` is None where it did neither go on nor hang up in time.
    """

    certificate: bytes
    accepted: bool | None


async def identify(credentials: Credentials, host: str, port: int, timeout_s: float) -> Identity:
    """The member that answers at this address and takes this node's certificate. Raises `HandshakeError`."""
    try:
        context = credentials.context()
    except OSError as error:
        raise HandshakeError(NOT_INVITED, f"this node's own certificate can not be read: {error}") from error
    return judged(credentials, await look(context, host, port, timeout_s))


async def look(context: ssl.SSLContext, host: str, port: int, timeout_s: float) -> Seen:
    """What a handshake at this address shows. Raises `HandshakeError`: NOT_LISTENING, SILENT, NO_TLS."""
    until = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(until):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except TimeoutError as error:
        raise HandshakeError(SILENT, f"nothing answers within {timeout_s:g} s") from error
    except ConnectionRefusedError as error:
        raise HandshakeError(NOT_LISTENING, "nobody listens there") from error
    except (ssl.SSLError, ConnectionError, EOFError) as error:
        raise HandshakeError(NO_TLS, "what listens there does not speak TLS, or hangs up") from error
    except OSError as error:
        raise HandshakeError(SILENT, f"it can not be reached: {error.strerror or error}") from error
    try:
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        accepted = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                accepted = await _goes_on(reader)
        return Seen(certificate or b"", accepted)
    finally:
        writer.transport.abort()


async def _goes_on(reader: asyncio.StreamReader) -> bool:
    try:
        return bool(await reader.read(1))
    except OSError:
        return False


def judged(credentials: Credentials, seen: Seen) -> Identity:
    """The member that was seen. Raises `HandshakeError` where it is none, or did not take this node's certificate."""
    try:
        identity = credentials.roots.read(seen.certificate)
    except CertificateError as error:
        raise HandshakeError(WRONG_MESH, f"it does not belong to this mesh: {error}") from error
    now_s = clock.wall_clock_ms() / 1000
    if now_s > identity.not_after:
        days = (now_s - identity.not_after) / 86_400
        raise HandshakeError(EXPIRED, f"its certificate expired {days:.1f} days ago, by this machine's clock")
    if now_s < identity.not_before:
        raise HandshakeError(NOT_YET_VALID, "its certificate is not valid yet: the clocks differ")
    if seen.accepted:
        return identity
    if seen.accepted is None:
        raise HandshakeError(SILENT, "it shows its certificate and then says nothing")
    mine = credentials.identity
    if now_s > mine.not_after:
        days = (now_s - mine.not_after) / 86_400
        raise HandshakeError(OWN_EXPIRED, f"this node's own certificate expired {days:.1f} days ago")
    if now_s < mine.not_before:
        raise HandshakeError(OWN_NOT_YET_VALID, "this node's own certificate is not valid yet: this clock is behind")
    raise HandshakeError(NOT_INVITED, "it does not accept this node's certificate")
