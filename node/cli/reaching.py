"""`kith doctor HOST:PORT`: what stands between this node and what is at an address, in plain words, each with a remedy.

Idea: the way that a link goes is gone step by step (name, TCP, TLS, certificate, a call, the clock), and the first
step that fails is the finding. The step before tells what can be excluded: where TCP gets no answer at all, a firewall
or a dead machine is all that can be said; where it is refused, the machine is there and the port is closed.

The call is CountTokens of nothing: every role may make it, it costs nothing, and its answer carries the other clock.

Not told, because it can not be seen from here: which device drops packets, whether a network in between is a VLAN (only
that the other machine is in another subnet), and why the other side refuses (its log says that).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.finding import Finding, fail, ok, warn
from node.cli.way import own_address, way
from node.errors import KithError

if TYPE_CHECKING:
    from mesh.certificates import Identity
    from node.credentials import Credentials
    from node.enrolment import Enrolment

#: How long TCP, the handshake and the call may each take, seconds. A lost first packet is sent again after one.
CONNECT_S = 4.0
HANDSHAKE_S = 5.0
CALL_S = 5.0
#: Clocks that differ by more are worth a word, seconds; from `mesh.certificates.SKEW_S` on new members are refused.
CLOCK_OFF_S = 5.0
#: What a plain connection is asked where TLS got no answer.
HTTP_QUESTION = b"HEAD / HTTP/1.0\r\n\r\n"
SET_CLOCK = "set the clock that is wrong, best by NTP: timedatectl set-ntp true"

CONNECTION, HANDSHAKE, CLOCK, CALL = "connection", "handshake", "clock", "membership"


def reach(folder: Path, text: str) -> Iterator[Finding]:
    """Every finding about an address, in the order of the steps, as it is made."""
    with asyncio.Runner() as runner:
        steps = aiter(examine(folder, text))
        while True:
            try:
                yield runner.run(_next(steps))
            except StopAsyncIteration:
                return


async def _next(steps: AsyncIterator[Finding]) -> Finding:
    return await anext(steps)


async def examine(folder: Path, text: str) -> AsyncIterator[Finding]:
    from node import enrolment
    from node.addresses import split_address
    from node.credentials import Credentials
    from node.paths import NodePaths

    address = split_address(text)
    if address is None or not address[1]:
        yield fail(CONNECTION, f"{text[:80]!r} is no HOST:PORT", "write it like 192.168.1.5:7600")
        return
    enrolled: Enrolment | None = None
    try:
        enrolled = enrolment.load(NodePaths(folder))
    except KithError as error:
        yield fail(HANDSHAKE, error.message, error.remedy)
    for finding in own_clock(enrolled):
        yield finding
    try:
        host = await _resolved(address[0])
    except OSError as error:
        words = f"the name {address[0]} can not be resolved: {error.strerror or error}"
        yield fail(CONNECTION, words, "name the machine by its IP address")
        return
    mine, finding = await _connected(host, address[1])
    yield finding
    for finding in way(host, mine):
        yield finding
    if finding.level == "fail":
        return
    credentials = Credentials(enrolled) if enrolled is not None else None
    identity, finding = await _shaken(credentials, host, address[1])
    yield finding
    if identity is not None and credentials is not None:
        async for finding in _called(credentials, identity, host, address[1]):
            yield finding


def own_clock(enrolled: Enrolment | None) -> Iterator[Finding]:
    """What this node's own certificate says of it and of this machine's clock."""
    if enrolled is None:
        return
    from mesh.certificates import SKEW_S

    identity, now = enrolled.identity, time.time()
    if now > identity.not_after:
        words = (
            f"this node's certificate expired {_days(now - identity.not_after)} ago, by this machine's clock ({_now()})"
        )
        remedy = (
            "if that date is wrong, set the clock; else `kith invite` on a member, `kith join` here: it stays itself"
        )
        yield fail(CLOCK, words, remedy)
    elif now < identity.not_before:
        behind = identity.not_before + SKEW_S - now
        words = f"this machine's clock ({_now()}) is at least {_days(behind)} behind: its certificate is from later"
        yield fail(CLOCK, words, SET_CLOCK)


async def _resolved(host: str) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    name, scope = found[0][4][0], found[0][4][3] if len(found[0][4]) == 4 else 0
    return f"{name}%{socket.if_indextoname(int(scope))}" if scope and "%" not in str(name) else str(name)


async def _connected(host: str, port: int) -> tuple[str | None, Finding]:
    """The own address that TCP left by, and how it went."""
    from node.addresses import target

    at = target(host, port)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        words = f"no answer from {at} in {CONNECT_S:g} s: the machine is off, or a firewall or guest network drops it"
        remedy = f"is it on (ping {host})? let TCP port {port} in there, for example: sudo ufw allow {port}/tcp"
        return own_address(host), fail(CONNECTION, words, remedy)
    except ConnectionRefusedError:
        words = f"{host} is there, and nobody listens on port {port}"
        remedy = (
            "is `kith up` running there? its `kith status` says where it listens; a node in no mesh listens nowhere"
        )
        return own_address(host), fail(CONNECTION, words, remedy)
    except OSError as error:
        if error.errno == errno.ENETUNREACH:
            words, remedy = f"this machine has no way to {host}", "join its network, or start the VPN that leads there"
        elif error.errno == errno.EHOSTUNREACH:
            words, remedy = f"no machine answers at {host}", "look its address up there: `kith status`, `ip address`"
        else:
            words, remedy = f"{at} can not be reached: {error.strerror or error}", "look at this machine's network"
        return own_address(host), fail(CONNECTION, words, remedy)
    took_ms = 1000 * (time.perf_counter() - began)
    mine = str(writer.get_extra_info("sockname")[0])
    writer.transport.abort()
    return mine, ok(CONNECTION, f"{at} takes connections ({took_ms:.1f} ms)")


async def _shaken(credentials: Credentials | None, host: str, port: int) -> tuple[Identity | None, Finding]:
    """Who is there."""
    from node import handshake

    context = credentials.context() if credentials is not None else _nameless()
    try:
        seen = await handshake.look(context, host, port, HANDSHAKE_S)
    except handshake.HandshakeError as error:
        return None, await _no_tls(error, host, port)
    if credentials is None:
        claimed = mesh_of(seen.certificate)
        if not claimed:
            return None, _stranger(seen.certificate)
        words = f"a node of the mesh {claimed[:12]} is there, and this one is in no mesh: it is not invited"
        return None, fail(HANDSHAKE, words, "run `kith invite` on a member, then here: kith join CODE")
    try:
        identity = handshake.judged(credentials, seen)
    except handshake.HandshakeError as error:
        return None, _refused(error, seen, credentials)
    if identity.node_id == credentials.identity.node_id:
        return identity, ok(HANDSHAKE, "this node itself answers there")
    words = f"{identity.node_id[:12]} of this mesh ({identity.role}) is there and takes this node's certificate"
    return identity, ok(HANDSHAKE, words)


def _nameless() -> ssl.SSLContext:
    """For a node in no mesh: shows nothing, takes any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def _no_tls(error: Exception, host: str, port: int) -> Finding:
    from node import handshake

    assert isinstance(error, handshake.HandshakeError)
    if error.reason != handshake.NO_TLS:
        words = f"it takes the connection and does not answer: {error.said}"
        return fail(
            HANDSHAKE, words, "the program there hangs, or a proxy stands in between; look at `kith logs` there"
        )
    said = await _said_plainly(host, port)
    if said.startswith(b"HTTP/"):
        return fail(HANDSHAKE, "no TLS there: a web server answers", "another port? see `kith status` on that machine")
    what = "something else listens" if said else "what listens there hangs up"
    return fail(HANDSHAKE, f"no TLS there: {what}", "the port of the mesh is in `kith status` on that machine")


async def _said_plainly(host: str, port: int) -> bytes:
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(HTTP_QUESTION)
                return await reader.read(64)
            finally:
                writer.transport.abort()
    except OSError:
        return b""


def mesh_of(certificate: bytes) -> str:
    """The mesh that a certificate claims, unchecked: its id; empty where it is not of any mesh."""
    from cryptography import x509

    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ""
    mesh_id = uris[0].removeprefix("spiffe://").partition("/")[0] if len(uris) == 1 else ""
    return mesh_id if len(mesh_id) == 32 and mesh_id.isalnum() else ""


def _stranger(certificate: bytes) -> Finding:
    from cryptography import x509

    try:
        subject = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except (ValueError, TypeError):
        subject = ""
    if subject == "CN=kith join":
        words = "that is the join port of a node that invites, not its mesh port"
        return fail(HANDSHAKE, words, "to enter: kith join CODE HOST:PORT; to examine: the port in its `kith status`")
    words = "TLS is there, but no node of a mesh: another program listens"
    return fail(HANDSHAKE, words, "the port of the mesh is in `kith status` on that machine")


def _refused(error: Exception, seen: object, credentials: Credentials) -> Finding:
    from mesh.certificates import SKEW_S
    from node import handshake

    assert isinstance(error, handshake.HandshakeError)
    assert isinstance(seen, handshake.Seen)
    again = "run `kith invite` on a member, then `kith join CODE` here: it stays the same node"
    if error.reason == handshake.WRONG_MESH:
        if not (claimed := mesh_of(seen.certificate)):
            return _stranger(seen.certificate)
        if claimed == credentials.identity.mesh_id:
            return fail(
                HANDSHAKE, f"its certificate is not what it should be: {error.said}", "do not trust that machine"
            )
        words = f"wrong mesh: it belongs to {claimed[:12]}, and this node to {credentials.identity.mesh_id[:12]}"
        return fail(HANDSHAKE, words, "to change: `kith leave`, then `kith join CODE` with an invite of that mesh")
    if error.reason == handshake.EXPIRED:
        words = f"{error.said} ({_now()})"
        return fail(HANDSHAKE, words, f"if that date is wrong, set the clock here; else on that machine: {again}")
    if error.reason == handshake.NOT_YET_VALID:
        theirs = mesh_start(seen.certificate)
        behind = _days(theirs + SKEW_S - time.time())
        words = f"this machine's clock ({_now()}) is at least {behind} behind that of the mesh"
        return fail(CLOCK, words, SET_CLOCK)
    if error.reason == handshake.OWN_EXPIRED:
        return fail(HANDSHAKE, f"it refuses this node: {error.said}", again)
    if error.reason == handshake.OWN_NOT_YET_VALID:
        return fail(HANDSHAKE, f"it refuses this node: {error.said}", SET_CLOCK)
    if error.reason == handshake.SILENT:
        return fail(HANDSHAKE, error.said, "look at `kith logs` there")
    mine = credentials.identity
    words = (
        f"it refuses this node's certificate, which is of its mesh and valid here from {_date(mine.not_before)} to "
        f"{_date(mine.not_after)}: its clock is off, most likely"
    )
    return fail(CLOCK, words, "compare `date` on both machines, and set the clock that is wrong")


def mesh_start(certificate: bytes) -> float:
    """When a certificate begins to be valid, seconds since the epoch."""
    from cryptography import x509

    return x509.load_der_x509_certificate(certificate).not_valid_before_utc.timestamp()


async def _called(credentials: Credentials, identity: Identity, host: str, port: int) -> AsyncIterator[Finding]:
    """Whether it does what a member asks, and what its clock says."""
    import grpc
    import grpc.aio

    from mesh.wire import engine_pb2, mesh_pb2_grpc
    from node.grpc_options import GRPC_OPTIONS
    from node.rpc import CLOCK_KEY

    async with credentials.channel(host, port, identity, GRPC_OPTIONS) as channel:
        call = mesh_pb2_grpc.MeshStub(channel).CountTokens(engine_pb2.CountTokensRequest(), timeout=CALL_S)
        began = time.time()
        told = ""
        try:
            metadata = await call.initial_metadata()
            told = str(dict(metadata or ()).get(CLOCK_KEY, ""))
        except grpc.aio.AioRpcError:
            pass
        now = time.time()
        code = await call.code()
    if code is grpc.StatusCode.PERMISSION_DENIED:
        words = "denied: it knows this node and does nothing for it; this node was revoked, or its clock differs much"
        yield fail(CALL, words, "`kith logs` there says why; a revoked machine needs `kith leave` and a new invite")
        return
    if not told:
        yield warn(CALL, f"it answers a call with {code.name}", "look at `kith status` and `kith logs` there")
        return
    yield ok(CALL, "it works for this node")
    if told.isdigit():
        yield clocks(int(told) / 1000 - (began + now) / 2, (now - began) / 2)


def clocks(ahead_s: float, give_or_take_s: float) -> Finding:
    """What a difference of clocks means; positive: the other one is ahead."""
    from mesh.certificates import SKEW_S

    if abs(ahead_s) <= max(CLOCK_OFF_S, give_or_take_s):
        return ok(CLOCK, f"both clocks agree within {max(abs(ahead_s) + give_or_take_s, 0.1):.1f} s")
    words = f"its clock is {_days(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} this one ({_now()})"
    remedy = SET_CLOCK
    if abs(ahead_s) > SKEW_S:
        return fail(CLOCK, f"{words}: new certificates are refused", remedy)
    return warn(CLOCK, words, remedy)


def _days(seconds: float) -> str:
    if seconds > 2 * 86_400:
        return f"{seconds / 86_400:.0f} days"
    if seconds > 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds > 120 else f"{seconds:.0f} s"


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at_s))


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime())
