"""A join door on loopback, machines that knock at it, and an attacker's raw connection."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from mesh.certificates import Role
from mesh.identity import NodeId
from node import enrolment
from node.enrolment import Enrolment
from node.joining.advert import Adverts
from node.joining.codes import Code, Token, parse
from node.joining.door import Door, Happened, OpenInvite, read_frame
from node.joining.exchange import JoinerSide, Kind
from node.joining.joiner import Joined, join
from node.joining.throwaway_tls import client_context
from node.paths import NodePaths
from tests.node.test_discovery import LOOPBACK

LOG = logging.getLogger("test.joining")
#: What a welcome says of where members are.
ADDRESSES = [("192.0.2.1", 7600), ("192.0.2.2", 7600)]
WITHIN_S = 20.0


class Doors:
    """Issuers and joiners under one folder. Doors are closed at the end."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def paths(self, name: str) -> NodePaths:
        paths = NodePaths(self._folder / name)
        paths.data_dir.mkdir(parents=True, exist_ok=True)
        return paths

    def issuer(self, name: str = "issuer") -> Enrolment:
        return enrolment.found(self.paths(name), "home")

    def door(
        self,
        issuer: Enrolment | None = None,
        denied: Callable[[NodeId], bool] = lambda _: False,
        adverts: Adverts | None = None,
    ) -> Door:
        door = Door(issuer or self.issuer(), "attic", "127.0.0.1", 0, lambda: ADDRESSES, denied, adverts)
        self._stack.push_async_callback(door.close)
        return door

    async def join(self, name: str, secret: str, port: int, called: str = "") -> Joined:
        address = f"127.0.0.1:{port}"
        return await join(self.paths(name), parse(secret), address, called or name, [LOOPBACK], LOG)


async def invite(door: Door, ttl_s: float = 60.0, uses: int = 1, role: Role = Role.NODE) -> OpenInvite:
    return await door.open(ttl_s, uses, role)


def code_of(opened: OpenInvite) -> str:
    return str(opened.invite.code)


def token_of(opened: OpenInvite) -> str:
    return str(opened.invite.token)


def wrong_code_of(opened: OpenInvite) -> str:
    """Another code with the same nameplate."""
    code = opened.invite.code
    assert code is not None
    one, other = code.words
    return str(Code(code.nameplate, (other, one) if one != other else ("acorn", "zebra")))


def wrong_token_of(opened: OpenInvite) -> Token:
    token = opened.invite.token
    return Token(token.ca_hash, token.invite, bytes(16))


async def happened(opened: OpenInvite) -> list[Happened]:
    """All that happens to an invite until it ends."""
    events: list[Happened] = []
    async with asyncio.timeout(WITHIN_S):
        while not events or events[-1].what != "closed":
            events.append(await opened.happened.get())
    return events


async def closed(door: Door, port: int) -> bool:
    """Whether the port is closed, for the operating system as well."""
    if door.port:
        return False
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


class Knock:
    """A connection that does what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def certificate(self) -> bytes:
        tls: ssl.SSLObject = self.writer.get_extra_info("ssl_object")
        found = tls.getpeercert(binary_form=True)
        assert found
        return found

    @classmethod
    async def at(cls, port: int, host: str = "127.0.0.1") -> "Knock":
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context(), local_addr=(host, 0), ssl_shutdown_timeout=1.0
        )
        return cls(reader, writer)

    async def start(self, secret: Code | Token) -> JoinerSide:
        """Begin an exchange, and read what the inviter proves without a look at it."""
        side = JoinerSide(secret.invite, secret.password, self.certificate)
        self.writer.write(side.start())
        await read_frame(self.reader, Kind.PROOF, WITHIN_S)
        return side

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass
