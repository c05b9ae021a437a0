"""Fuzzing of what a node hears before it knows anybody: mDNS packets, and raw bytes at the join port.

Idea: the packets go in where zeroconf's socket hands them over, so its parser, its cache and its browser run as they do
in a node; the bytes go through a real socket, before and after the TLS handshake. Now and then something true is said:
a listener that no longer hears it, or a door that no longer answers, was broken by what came before.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from zeroconf._dns import DNSAddress, DNSPointer, DNSQuestion, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from mesh.certificates import Role
from node import enrolment
from node.discovery import CANDIDATES_MAX, SERVICE_TYPE, Discovery, daily_tag, utc_today
from node.hellos import PROTOCOL_VERSION
from node.joining import advert
from node.joining.door import Door, OpenInvite
from node.joining.exchange import JoinerSide, Kind, frame
from node.joining.throwaway_tls import client_context
from node.multicast import Speaker
from node.paths import NodePaths
from tests.security.odd_input import EDGES, Rng, mutated, nearly

LOG = logging.getLogger("test.fuzzing")
MESH, INVITE = "0123456789abcdef" * 2, "7"
#: Packets after which a true one has to be heard.
TRUE_EVERY = 50
#: Packets that one cache holds, before a fresh one takes its place: zeroconf keeps what it heard for its time to live.
LIFE = 2000
PATIENCE_S = 15.0

FLAGS_RESPONSE, FLAGS_QUERY = 0x8400, 0x0000
CLASS_IN, CLASS_UNIQUE = 1, 0x8001
PTR, TXT, AAAA, SRV, A, ANY = 12, 16, 28, 33, 1, 255


class Loop:
    """An event loop of one's own. What goes wrong in its callbacks and tasks is kept, and raised at the next look."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._wrong: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._wrong.append(context))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(work)
        if self._wrong:
            wrong = self._wrong.pop(0)
            raise RuntimeError(wrong.get("message", "")) from wrong.get("exception")

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class Heard:
    """A node's discovery and a joiner's search, on one zeroconf without multicast."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.count = 0
        loop.run(self._start())

    async def _start(self) -> None:
        self._zeroconf = AsyncZeroconf(zc=Speaker(interfaces=["127.0.0.1"], unicast=True))
        await self._zeroconf.zeroconf.async_wait_for_start()
        self._found: list[tuple[str, int]] = []
        found = self._found
        self._discovery = Discovery(
            "fuzzed", 7001, ["192.168.1.7"], [], lambda host, port: found.append((host, port)), LOG, MESH
        )
        self._search = advert._Search(INVITE)
        handlers: list[tuple[str, Callable[..., None]]] = [
            (SERVICE_TYPE, self._discovery._on_change),
            (advert.SERVICE_TYPE, self._search.on_change),
        ]
        self._browsers = [
            AsyncServiceBrowser(self._zeroconf.zeroconf, kind, handlers=[handler]) for kind, handler in handlers
        ]
        self._listener = self._zeroconf.zeroconf.engine.protocols[0]

    def close(self) -> None:
        self._loop.run(self._close())

    async def _close(self) -> None:
        for browser in self._browsers:
            await browser.async_cancel()
        await self._discovery.stop()
        await self._search.close()
        await self._zeroconf.async_close()

    def one(self, rng: Rng) -> None:
        self._loop.run(self._one(rng))

    async def _one(self, rng: Rng) -> None:
        self.count += 1
        packet = odd_packet(rng)
        self._hear(packet if rng.random() < 0.4 else mutated(rng, packet))
        if self.count % TRUE_EVERY == 0:
            self._found.clear()
            self._hear(true_packet(SERVICE_TYPE, secrets.token_hex(4), {"v": str(PROTOCOL_VERSION), "m": tag()}))
            assert ("192.168.9.9", 7009) in self._found, "a true advert is not heard any more"
            assert len(self._discovery._given) <= CANDIDATES_MAX
        await asyncio.sleep(0)

    def _hear(self, data: bytes) -> None:
        self._listener.datagram_received(data, ("127.0.0.1", 5353))


def tag() -> str:
    return daily_tag(MESH, utc_today())


def true_packet(kind: str, instance: str, texts: dict[str, str]) -> bytes:
    """An advert as zeroconf writes it, in one packet."""
    name, server = f"{instance}.{kind}", f"kith-{instance}.local."
    out = DNSOutgoing(FLAGS_RESPONSE)
    text = b"".join(bytes([len(key) + 1 + len(value)]) + f"{key}={value}".encode() for key, value in texts.items())
    out.add_answer_at_time(DNSPointer(kind, PTR, CLASS_IN, 4500, name), 0)
    out.add_answer_at_time(DNSService(name, SRV, CLASS_UNIQUE, 120, 0, 0, 7009, server), 0)
    out.add_answer_at_time(DNSText(name, TXT, CLASS_UNIQUE, 4500, text), 0)
    out.add_answer_at_time(DNSAddress(server, A, CLASS_UNIQUE, 120, socket.inet_aton("192.168.9.9")), 0)
    return bytes(out.packets()[0])


def odd_packet(rng: Rng) -> bytes:
    """Well-formed, with records that fit together or not."""
    kind = rng.choice((SERVICE_TYPE, advert.SERVICE_TYPE))
    names = (f"{rng.randrange(64):08x}.{kind}", kind, "evil.example.", "local.", f"\x00{kind}", f"{'x' * 63}.{kind}")
    servers = (f"kith-{rng.randrange(8):08x}.local.", "local.", kind)
    out = DNSOutgoing(rng.choice((FLAGS_RESPONSE, FLAGS_RESPONSE, FLAGS_RESPONSE, FLAGS_QUERY)))
    if rng.random() < 0.2:
        out.add_question(DNSQuestion(rng.choice(names), rng.choice((PTR, SRV, ANY)), CLASS_IN))
    for _ in range(rng.randint(1, 5)):
        name = names[0] if rng.random() < 0.7 else rng.choice(names)
        lives_s = rng.choice((0, 1, 120, 4500, 2**31 - 1))
        match rng.randrange(5):
            case 0 | 1:
                record: Any = DNSPointer(kind, PTR, CLASS_IN, lives_s, name)
            case 2:
                port = rng.choice((0, 1, 7600, 65535))
                record = DNSService(name, SRV, CLASS_UNIQUE, lives_s, 0, 0, port, rng.choice(servers))
            case 3:
                texts = (
                    f"v={PROTOCOL_VERSION}",
                    f"v={rng.choice(EDGES)}",
                    "v=\N{SUPERSCRIPT TWO}",
                    f"m={tag()}",
                    "m=",
                    "=",
                )
                said = [text.encode() for text in (*rng.sample(texts, rng.randint(0, 4)), f"n={INVITE}", "t")]
                text = b"".join(bytes([len(one)]) + one for one in said)
                record = DNSText(name, TXT, CLASS_UNIQUE, lives_s, text if rng.random() < 0.5 else mutated(rng, text))
            case _:
                address = rng.choice(
                    (b"", bytes(3), bytes(4), b"\x7f\0\0\1", b"\xc0\xa8\1\2", bytes(16), b"\xfe\x80" * 8)
                )
                record = DNSAddress(rng.choice(servers), rng.choice((A, AAAA)), CLASS_UNIQUE, lives_s, address)
        out.add_answer_at_time(record, 0)
    return bytes(out.packets()[0])


CLIENT_HELLO = bytes.fromhex("160301007a010000760303") + bytes(32) + bytes.fromhex("00000413011302010000490000")


class Everybody:
    """A pace that lets everybody knock as often as they like."""

    def allows(self, host: str, now: float) -> bool:
        return True


class Knocked:
    """A join door with an open invite; one knock at a time. Nobody who does not know the secret gets anything."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self._loop = loop
        paths = NodePaths(folder / f"issuer-{secrets.token_hex(4)}")
        paths.data_dir.mkdir(parents=True)
        enrolled = enrolment.found(paths, "fuzzed")
        self._door = Door(enrolled, "attic", "127.0.0.1", 0, list, lambda _: False)
        self._door._pace = Everybody()  # type: ignore[assignment]
        self._serve = self._door._serve
        self._door._serve = self._watched  # type: ignore[method-assign, assignment]
        self._opened: OpenInvite | None = None
        self._crashes: list[Exception] = []

    async def _watched(self, *arguments: Any) -> None:
        try:
            await self._serve(*arguments)
        except Exception as error:
            self._crashes.append(error)
        finally:
            self._served.set()

    def close(self) -> None:
        self._loop.run(self._door.close())

    def one(self, rng: Rng) -> None:
        self._loop.run(self._one(rng))

    async def _one(self, rng: Rng) -> None:
        self._served = asyncio.Event()
        if self._opened is None or self._opened.invite.ended:
            self._opened = await self._door.open(3600.0, 5, Role.NODE)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await (self._before_tls(rng) if rng.random() < 0.8 else self._after_tls(rng, self._opened))
        async with asyncio.timeout(PATIENCE_S):
            await self._served.wait()
        if self._crashes:
            raise self._crashes.pop()
        while not self._opened.happened.empty():
            assert self._opened.happened.get_nowait().what in ("refused", "closed"), "somebody got a certificate"

    async def _before_tls(self, rng: Rng) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._door.port)
        writer.write(nearly(rng, CLIENT_HELLO, frame(Kind.START, bytes(80)), b"GET / HTTP/1.1\r\n\r\n"))
        await self._hang_up(rng, writer)

    async def _after_tls(self, rng: Rng, opened: OpenInvite) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._door.port, ssl=client_context())
        assert opened.invite.code is not None
        secret = rng.choice((opened.invite.code, opened.invite.token))
        start = JoinerSide(secret.invite, b"a wrong guess", b"certificate").start()
        if rng.random() < 0.7:
            writer.write(nearly(rng, start))
        else:
            writer.write(start)
            await reader.read(4096)  # its proof, or why not
            kind = rng.choice(list(Kind))
            writer.write(nearly(rng, frame(kind, rng.randbytes(rng.choice((0, 32, 200))))))
        await self._hang_up(rng, writer)

    async def _hang_up(self, rng: Rng, writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        if rng.random() < 0.5:
            writer.transport.abort()
            return
        writer.close()
        await writer.wait_closed()


class Lazily:
    """Made at the first input, and again after so many."""

    def __init__(self, make: Callable[[Loop], Any], life: int) -> None:
        self._make, self._life = make, life
        self._loop: Loop | None = None
        self._made: Any = None
        self._lived = 0

    def run(self, rng: Rng) -> None:
        if self._lived >= self._life:
            self.close()
        if self._loop is None:
            self._loop, self._lived = Loop(), 0
            self._made = self._make(self._loop)
        self._lived += 1
        try:
            self._made.one(rng)
        except Exception:
            self._lived = self._life  # what broke once would break at every input after it
            raise

    def close(self) -> None:
        if self._loop is not None:
            try:
                self._made.close()
            finally:
                self._loop.close()
                self._loop = None


def mdns_packets() -> Lazily:
    return Lazily(Heard, LIFE)


def join_door(folder: Path) -> Lazily:
    return Lazily(lambda loop: Knocked(loop, folder), LIFE)
