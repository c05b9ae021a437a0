"""The machine that knocks: finds the inviter, makes sure of it, and comes home with a certificate.

Idea: nothing is kept and nothing about this node is said before the inviter has proven that it knows the secret. With a
code one machine is asked and no other, since each that is asked has a guess at it; a token can not be guessed, so
everybody who shows its id is tried. What is typed wrong is noticed before (codes.py).

A node whose certificate has expired joins again in the same way and keeps its key, its id and its data.

Does not: run while the node runs; whoever calls holds the data directory's lock.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import Logger

from mesh.certificates import CertificateError, Identity, Roots
from mesh.identity import NodeKey
from mesh.wire import join_pb2
from node import enrolment
from node.addresses import split_address, target
from node.enrolment import Enrolment
from node.errors import ExitCode, KithError
from node.interfaces import Interface
from node.joining.advert import SERVICE_TYPE, Address, find
from node.joining.codes import Code, Token, ca_hash_of
from node.joining.door import FRAME_S, read_frame
from node.joining.exchange import FRAME_BYTES_MAX, ExchangeError, JoinerSide, Kind
from node.joining.names import fingerprint_of, shown_name
from node.joining.throwaway_tls import client_context
from node.keys import load_or_make_key
from node.paths import NodePaths
from node.peers import keep_addresses

#: Seconds for a connection with its TLS handshake, and for mDNS to find somebody.
CONNECT_S = 6.0
FIND_S = 8.0
#: Who is asked at most, with a token.
INVITERS_MAX = 4
MEMBER_ADDRESSES_MAX = 64


@dataclass(frozen=True)
class Joined:
    """What `kith join` shows. Names are safe to print."""

    enrolment: Enrolment
    inviter_name: str
    inviter: str  # HOST:PORT of the join door
    again: bool  # it was a member before, and keeps its id


async def join(
    paths: NodePaths,
    secret: Code | Token,
    address: str,
    name: str,
    interfaces: Sequence[Interface],
    log: Logger,
    *,
    found: Callable[[str], None] = lambda _: None,
    service_type: str = SERVICE_TYPE,
) -> Joined:
    """Join the mesh that `secret` leads to. Raises `KithError`; then this data directory is as it was.

    Args:
        address: HOST:PORT of the inviter's join door; "": it is looked for by mDNS.
        name: what people call this node.
        interfaces: to look on.
        found: called with HOST:PORT before somebody is asked.
    """
    member = enrolment.load(paths)
    if member is not None and member.authority is not None:
        raise KithError(
            "already-member",
            f"this node is an issuer of the mesh {fingerprint_of(member.mesh_id)}, which it holds the CA key of",
            "It renews its certificate by itself: `kith up`. For another mesh: `kith leave`, or another --data-dir.",
            ExitCode.USAGE,
        )
    key = load_or_make_key(paths.key)
    inviters = [[_address_of(address)]] if address else await _find(secret, interfaces, log, service_type)
    failure: KithError | None = None
    for addresses in inviters[:INVITERS_MAX]:
        try:
            reader, writer, certificate, where = await _connect(addresses)
        except KithError as error:
            failure = error
            continue
        found(where)
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(_close, writer)
                side = await asyncio.to_thread(JoinerSide, secret.invite, secret.password, certificate)
                talk = _Talk(side, reader, writer)
                roots = await talk.prove(secret, member)
                welcome = await talk.ask(key, name)
                joined = _enrol(paths, member, roots, welcome)
                _keep_addresses(paths, welcome)
                await talk.confirm()
            return Joined(joined, shown_name(welcome.inviter_name), where, again=member is not None)
        except KithError as error:
            failure = error
        except ExchangeError as error:
            failure = _explained(error, where, secret)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            failure = _broke_off(where)
    assert failure is not None, "somebody was asked"
    raise failure


class _Talk:
    """One exchange on an open connection. Raises what exchange.py and the connection raise."""

    def __init__(self, side: JoinerSide, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._side = side
        self._reader = reader
        self._writer = writer

    async def prove(self, secret: Code | Token, member: Enrolment | None) -> Roots:
        """Let the inviter prove itself. The mesh's CA certificates."""
        self._writer.write(await asyncio.to_thread(self._side.start))
        await self._writer.drain()
        proof = await read_frame(self._reader, Kind.PROOF, FRAME_S)
        ders = await asyncio.to_thread(self._side.read_proof, proof)
        try:
            roots = Roots(ders)
        except CertificateError as error:
            raise _certificate_refused(error) from error
        if isinstance(secret, Token) and ca_hash_of(ders[0]) != secret.ca_hash:
            raise KithError(
                "wrong-mesh",
                "the inviter's mesh is not the one that this token names",
                "Ask for a new token where you meant to join.",
                ExitCode.BAD_INPUT,
            )
        if member is not None and member.mesh_id != roots.mesh_id:
            raise KithError(
                "already-member",
                f"this node is in the mesh {fingerprint_of(member.mesh_id)}, and the invite is to "
                f"{fingerprint_of(roots.mesh_id)}; the invite is void now",
                "Leave first with `kith leave`, or join with another --data-dir; then ask for a new invite.",
                ExitCode.USAGE,
            )
        return roots

    async def ask(self, key: NodeKey, name: str) -> join_pb2.JoinWelcome:
        self._writer.write(self._side.request(key, name))
        await self._writer.drain()
        return self._side.read_welcome(await read_frame(self._reader, Kind.WELCOME, FRAME_S))

    async def confirm(self) -> None:
        """The certificate is on the disk here; that the inviter hears of it is not needed."""
        with contextlib.suppress(OSError):
            self._writer.write(self._side.done())
            await self._writer.drain()


def _enrol(paths: NodePaths, member: Enrolment | None, roots: Roots, welcome: join_pb2.JoinWelcome) -> Enrolment:
    try:
        _check_clock(roots.read(welcome.certificate))
        if member is None:
            return enrolment.enrol(paths, roots.ders, welcome.certificate, welcome.label)
        member.renewed(welcome.certificate)
        return member
    except CertificateError as error:
        raise _certificate_refused(error) from error
    except OSError as error:
        raise enrolment.unwritable(paths, error) from error


def _check_clock(identity: Identity) -> None:
    """A clock that is off would make the new certificate useless here, and every peer look expired."""
    now = time.time()
    if identity.valid_at(now):
        return
    off = now - identity.not_before
    amount = f"{abs(off) / 86_400:.0f} days" if abs(off) > 2 * 86_400 else f"{abs(off) / 60:.0f} minutes"
    raise KithError(
        "clock-skew",
        f"this machine's clock is about {amount} {'ahead of' if off > 0 else 'behind'} the inviter's",
        "Set the clocks of both, then ask for a new invite.",
        ExitCode.CANNOT_START,
    )


def _keep_addresses(paths: NodePaths, welcome: join_pb2.JoinWelcome) -> None:
    said = [(one.host, one.port) for one in welcome.addresses[:MEMBER_ADDRESSES_MAX]]
    keep_addresses(paths.peers, [one for one in said if split_address(target(*one)) == one])


async def _find(secret: Code | Token, interfaces: Sequence[Interface], log: Logger, type_: str) -> list[list[Address]]:
    try:
        found = await find(secret.invite, interfaces, log, FIND_S, type_)
    except OSError as error:
        log.warning("mDNS can not be used: %s", error)
        found = []
    if not found:
        raise KithError(
            "inviter-not-found",
            f"nobody on this network shows the invite {secret.invite}",
            "Is `kith invite` still open there? If multicast does not get through, name it: "
            "kith join CODE HOST:PORT (`kith invite` prints it).",
            ExitCode.UNREACHABLE,
        )
    if len(found) > 1 and isinstance(secret, Code):
        places = ", ".join(target(*addresses[0]) for addresses in found)
        raise KithError(
            "inviter-ambiguous",
            f"several machines show an invite {secret.invite}: {places}; nobody was asked, for each has a guess",
            "Say which one: kith join CODE HOST:PORT.",
            ExitCode.USAGE,
        )
    return found


def _address_of(text: str) -> Address:
    if (address := split_address(text)) is None or not address[1]:
        raise KithError(
            "bad-address", f"{text[:80]!r} is no HOST:PORT", "Write it like 192.168.1.5:7601.", ExitCode.USAGE
        )
    return address


async def _connect(
    addresses: Sequence[Address],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes, str]:
    """The first address that answers: streams, the TLS certificate shown there, HOST:PORT. Raises `KithError`."""
    context = client_context()
    error: Exception | None = None
    for host, port in addresses:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=context, limit=FRAME_BYTES_MAX, ssl_shutdown_timeout=1.0
                )
        except (OSError, TimeoutError) as failed:
            error = failed
            continue
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None, "a TLS 1.3 server has one"
        return reader, writer, certificate, target(host, port)
    where = ", ".join(target(*address) for address in addresses)
    said = "nothing answers" if isinstance(error, TimeoutError) else "the join port is closed or gone"
    raise KithError(
        "inviter-unreachable",
        f"{said} at {where}",
        "It is open only while an invite lives: run `kith invite` there. Its port is the one that command prints.",
        ExitCode.UNREACHABLE,
    ) from error


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2.0):
            await writer.wait_closed()


def _explained(error: ExchangeError, where: str, secret: Code | Token) -> KithError:
    what = "code" if isinstance(secret, Code) else "token"
    match error.reason:
        case "mac":
            return KithError(
                "wrong-code",
                f"what answers at {where} could not prove that it knows this {what}: the {what} is wrong, or somebody "
                "stands in between; nothing about this node was sent",
                "A code is void after one wrong try: run `kith invite` again and read it out once more.",
                ExitCode.BAD_INPUT,
            )
        case "invite-unknown":
            return KithError(
                "invite-unknown",
                f"the invite {secret.invite} does not live at {where} (any more): it was used, ended, or a wrong "
                "try made it void",
                "Run `kith invite` again.",
                ExitCode.NOT_FOUND,
            )
        case "denied":
            return KithError(
                "node-revoked",
                "this node was revoked from the mesh",
                "Its key stays shut out. `kith leave` lays it aside; then join as a new node.",
                ExitCode.UNAVAILABLE,
            )
        case "busy":
            return KithError(
                "invite-busy", "somebody else is trying this code right now", "Try again.", ExitCode.UNAVAILABLE
            )
        case "version":
            return KithError(
                "version-mismatch",
                f"{where} speaks another version of the join protocol",
                "Bring both machines to the same version.",
                ExitCode.UNAVAILABLE,
            )
    return KithError(
        "join-failed",
        f"what answers at {where} does not speak the join protocol: {error}",
        "Is it the join port that `kith invite` printed?",
        ExitCode.BAD_INPUT,
    )


def _broke_off(where: str) -> KithError:
    return KithError(
        "join-broke-off",
        f"{where} ended the exchange",
        "It may be busy, or the invite ended. Run `kith invite` again: an exchange that broke off makes a code void.",
        ExitCode.UNREACHABLE,
    )


def _certificate_refused(error: CertificateError) -> KithError:
    return KithError(
        "certificate-refused",
        f"the inviter's certificates do not fit: {error}",
        "Ask for a new invite, and join again.",
        ExitCode.BAD_INPUT,
    )
