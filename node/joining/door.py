"""The join door of an issuer: a TLS port that is open only while an invite lives.

Idea: everything that decides is elsewhere (invites.py: what a guess costs; exchange.py: what is proven). The door
accepts, counts, limits and writes. A knock that comes too fast or while too many are inside is closed before TLS; every
frame has a size and a time; the whole exchange has a time. Each invite has a queue of what happened to it, for whoever
waits at the screen.

Nothing secret is logged: neither codes nor tokens, only names made printable, and node ids.

Does not: keep invites over a restart. Who wants one has a person at hand, or a script that asks again.
"""

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mesh.certificates import Role
from mesh.identity import NodeId, node_id_of
from mesh.wire import join_pb2
from node import clock
from node.enrolment import Enrolment
from node.errors import ExitCode, KithError
from node.joining.advert import Address, Adverts
from node.joining.codes import ca_hash_of
from node.joining.exchange import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    REFUSALS,
    ExchangeError,
    InviterSide,
    Kind,
    content_of,
    length_of,
    refusal,
)
from node.joining.invites import ENTROPY_BYTES, Guess, Invite, Invites, Refused
from node.joining.names import fingerprint_of, shown_name
from node.joining.pace import Pace
from node.joining.throwaway_tls import server_context
from node.logs import log

#: Exchanges at the same time; further knocks are closed. Against a crowd that holds the door.
EXCHANGES_MAX = 8
#: Seconds for the TLS handshake, for one frame, and for a whole exchange. Against who holds a code busy, or a socket.
HANDSHAKE_S = 5.0
FRAME_S = 10.0
EXCHANGE_S = 25.0
#: How often it is looked whether an invite has expired, seconds: timers stand still while a machine sleeps.
LOOK_S = 5.0
#: After an accept that failed (no file descriptors left), seconds.
ACCEPT_PAUSE_S = 0.2
#: Addresses of members in a welcome, and events that wait for one screen.
ADDRESSES_MAX = 64
EVENTS_MAX = 100


@dataclass(frozen=True)
class Happened:
    """To an invite. `what`: "joined" (it took the certificate), "issued" (it got one and did not confirm), "refused",
    "closed". `reason` of "refused": "secret" or "denied"; of "closed": see `Invite.ended`. `name` is safe to print."""

    what: str
    reason: str = ""
    name: str = ""
    node_id: str = ""


@dataclass(eq=False)
class OpenInvite:
    """An invite as its inviter sees it."""

    invite: Invite
    port: int = 0
    advertised: bool = False
    admitting: int = 0  # exchanges that have used it and are not over
    happened: "asyncio.Queue[Happened]" = field(default_factory=lambda: asyncio.Queue(EVENTS_MAX))

    def tell(self, happened: Happened) -> None:
        if self.happened.full():
            self.happened.get_nowait()
        self.happened.put_nowait(happened)


@dataclass(eq=False)
class _Listening:
    """What exists only while the port is open."""

    socket: socket.socket
    port: int
    context: ssl.SSLContext
    certificate: bytes


class Door:
    """Use from one event loop; `close` it at the end.

    Args:
        enrolment: of this node; only an issuer's door opens.
        name: of this node, for the joiner's screen.
        host: where to listen, an address literal.
        port: that is tried first; any free one otherwise.
        addresses: of members, this node's first, for the joiner's first dial.
        denied: whether a node was revoked.
        adverts: for mDNS; None: the door is found by HOST:PORT only.
    """

    def __init__(
        self,
        enrolment: Enrolment,
        name: str,
        host: str,
        port: int,
        addresses: Callable[[], Sequence[Address]],
        denied: Callable[[NodeId], bool],
        adverts: Adverts | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._name = name
        self._host = host
        self._wanted_port = port
        self._addresses = addresses
        self._denied = denied
        self._adverts = adverts
        self._invites = Invites()
        self._open: dict[Invite, OpenInvite] = {}
        self._pace = Pace()
        self._listening: _Listening | None = None
        self._waiting: list[asyncio.Task[None]] = []  # for knocks, and for invites to expire
        self._exchanges: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    @property
    def port(self) -> int:
        """0 while it is closed."""
        return self._listening.port if self._listening else 0

    async def open(self, ttl_s: float, uses: int, role: Role, *, with_code: bool = True) -> OpenInvite:
        """A new invite, at an open door. Raises `KithError`."""
        if self._enrolment.authority is None:
            raise KithError(
                "not-an-issuer",
                "this node holds no CA key, so it can not admit others",
                "Run the command on the node that made the mesh, or make this one an issuer there: `kith promote`.",
                ExitCode.UNAVAILABLE,
            )
        if role is Role.ISSUER:
            raise KithError(
                "bad-request",
                "an invite makes no issuer",
                "Invite it as a node, then `kith promote` it.",
                ExitCode.USAGE,
            )
        invite = self._invites.open(
            clock.now(),
            ttl_s,
            uses,
            role,
            ca_hash_of(self._enrolment.authority.ca_der),
            secrets.token_bytes(ENTROPY_BYTES),
            with_code=with_code,
        )
        opened = self._open[invite] = OpenInvite(invite)
        try:
            async with self._changing:
                listening = self._listening or await self._listen()
                opened.port = listening.port
                if self._adverts is not None:
                    nameplate = invite.code.invite if invite.code else ""
                    opened.advertised = await self._adverts.show(invite.token.invite, nameplate, listening.port)
        except BaseException:
            await self.withdraw(opened)
            raise
        log("info", f"an invite as {role}, good for {uses}, lives for {ttl_s:.0f} s; the join port is {opened.port}")
        return opened

    async def withdraw(self, opened: OpenInvite) -> None:
        """End an invite before its time; nothing where it has ended."""
        self._invites.withdraw(opened.invite)
        await self._settle()

    async def close(self) -> None:
        """End all invites, and whatever is under way."""
        for invite in self._invites.live:
            self._invites.withdraw(invite)
        for task in self._exchanges:
            task.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._settle()
        await asyncio.gather(*self._settling)
        if self._adverts is not None:
            await self._adverts.close()

    # The port

    async def _listen(self) -> _Listening:
        context, certificate = await asyncio.to_thread(server_context)
        sock = _bound(self._host, self._wanted_port)
        self._listening = listening = _Listening(sock, sock.getsockname()[1], context, certificate)
        self._waiting = [asyncio.create_task(self._accept(listening)), asyncio.create_task(self._look())]
        return listening

    async def _settle(self) -> None:
        """Tell of invites that ended, and close the door after the last. What is under way runs out by its limits.

        A task of its own: whoever asks may be cancelled, and sockets are closed all the same.
        """
        settling = asyncio.create_task(self._settle_now())
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    async def _settle_now(self) -> None:
        async with self._changing:
            ended = [one for one in self._open.values() if one.invite.ended and not one.admitting]
            for opened in ended:
                del self._open[opened.invite]
            if not self._open and self._listening is not None:
                await self._stop_listening(self._listening)
            for opened in ended:
                opened.tell(Happened("closed", opened.invite.ended))
                log("info", f"an invite ended: {opened.invite.ended}")
            if self._adverts is not None:
                for opened in ended:
                    await self._adverts.hide(opened.invite.token.invite)

    async def _stop_listening(self, listening: _Listening) -> None:
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        listening.socket.close()
        self._listening = None
        log("info", "the join port is closed")

    async def _look(self) -> None:
        """End invites whose time is over."""
        while self._listening is not None:
            now = clock.now()
            self._invites.expire(now)
            if any(invite.ended for invite in self._open):
                await self._settle()
            soonest = min((invite.expires for invite in self._invites.live), default=now + LOOK_S)
            await asyncio.sleep(min(LOOK_S, max(0.01, soonest - now)))

    async def _accept(self, listening: _Listening) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listening.socket)
            except OSError as error:
                log("warning", f"the join port can not accept: {error}")
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._exchanges) >= EXCHANGES_MAX or not self._pace.allows(str(address[0]), clock.now()):
                log("debug", "a knock at the join port came too soon after others")
                sock.close()
                continue
            task = loop.create_task(self._serve(listening, sock, str(address[0])))
            self._exchanges.add(task)
            task.add_done_callback(self._exchanges.discard)

    # One exchange

    async def _serve(self, listening: _Listening, sock: socket.socket, host: str) -> None:
        reader = asyncio.StreamReader(FRAME_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(EXCHANGE_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    sock,
                    ssl=listening.context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1.0,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                try:
                    await self._exchange(InviterSide(listening.certificate), reader, writer, host)
                except (Refused, ExchangeError) as error:
                    writer.write(refusal(error.reason if error.reason in REFUSALS else "malformed"))
                    await writer.drain()
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log("debug", f"an exchange at the join port broke off: {type(error).__name__}")

    async def _exchange(
        self, side: InviterSide, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        """Raises `Refused`, `ExchangeError`, and what the connection raises."""
        guess = self._invites.begin(clock.now(), side.read_start(await read_frame(reader, Kind.START, FRAME_S)))
        opened = self._open[guess.invite]
        try:
            proof = await asyncio.to_thread(side.prove, guess.secret.password, self._enrolment.roots.ders)
            guess.proven = True
            writer.write(proof)
            await writer.drain()
            request = side.read_request(await read_frame(reader, Kind.REQUEST, FRAME_S))
            opened.admitting += 1
            try:
                await self._admit(side, reader, writer, guess, opened, request)
            finally:
                opened.admitting -= 1
        finally:
            if self._invites.give_up(guess):
                log("warning", f"{host} did not know the secret of an invite")
                opened.tell(Happened("refused", "secret", host))
            await self._settle()

    async def _admit(
        self,
        side: InviterSide,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        guess: Guess,
        opened: OpenInvite,
        request: join_pb2.JoinRequest,
    ) -> None:
        """The other side knows the secret and holds the key that it names."""
        node_id, name, role = node_id_of(request.public_key), shown_name(request.name), guess.invite.role
        if self._denied(node_id):
            self._invites.excuse(guess)
            log("warning", f"{name} ({node_id}) was revoked and asked to join again")
            opened.tell(Happened("refused", "denied", name, node_id))
            raise Refused("denied")
        self._invites.spend(clock.now(), guess)
        welcome = join_pb2.JoinWelcome(
            certificate=self._enrolment.issue(request.public_key, role),
            label=self._enrolment.label,
            inviter_name=self._name,
        )
        for address, port in list(self._addresses())[:ADDRESSES_MAX]:
            welcome.addresses.add(host=address, port=port)
        log("info", f"a certificate as {role} for {name} ({node_id}, fingerprint {fingerprint_of(node_id)})")
        took = False
        try:
            writer.write(side.welcome(welcome))
            await writer.drain()
            side.read_done(await read_frame(reader, Kind.DONE, FRAME_S))
            took = True
        finally:
            opened.tell(Happened("joined" if took else "issued", "", name, node_id))


async def read_frame(reader: asyncio.StreamReader, expected: Kind, timeout_s: float) -> bytes:
    """The content of the next frame. Raises `ExchangeError`, `TimeoutError`, and what the connection raises."""
    async with asyncio.timeout(timeout_s):
        length = length_of(await reader.readexactly(LENGTH_BYTES))
        return content_of(await reader.readexactly(length), expected)


def _bound(host: str, wanted: int) -> socket.socket:
    """A listening socket on `wanted`, or on any free port. Raises `KithError` (`port-taken`)."""
    reason = ""
    for port in dict.fromkeys((wanted, 0)):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
            sock = socket.socket(found[0], socket.SOCK_STREAM)
        except OSError as error:
            reason = str(error)
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if found[0] == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(found[4])
            sock.listen(EXCHANGES_MAX)
            return sock
        except OSError as error:
            sock.close()
            reason = error.strerror or str(error)
    raise KithError(
        "port-taken",
        f"the join port can not be opened on {host}: {reason}",
        "See `kith status` for where the node listens.",
        ExitCode.UNAVAILABLE,
    )
