"""Who attacks: anybody who can open a connection, with whatever certificate and key. Speaks the real wire by hand.

An attacker trusts the attacked mesh's CA, so that nothing fails on its own side; what it shows is up to the test.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives import serialization

from mesh.certificates import tls_name_of
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.wire import engine_pb2, facts_pb2, membership_pb2, mesh_pb2, mesh_pb2_grpc
from node.addresses import target
from node.credentials import pem
from node.enrolment import Enrolment
from node.hellos import PROTOCOL_VERSION
from node.rpc import problem_of
from scripts.daemons import Daemon

WITHIN_S = 15.0

#: One request that would be answered if its caller were allowed, for every RPC of the mesh service.
REQUESTS: dict[str, Any] = {
    "Link": mesh_pb2.LinkMessage(),
    "Generate": mesh_pb2.GenerateCall(request=engine_pb2.GenerateRequest(prompt="hello", max_tokens=4)),
    "Score": mesh_pb2.ScoreCall(),
    "CountTokens": engine_pb2.CountTokensRequest(texts=["one two"]),
    "Embed": mesh_pb2.EmbedCall(request=engine_pb2.EmbedRequest(texts=["one two"])),
    "FetchModel": mesh_pb2.FetchModelRequest(sha256=bytes(32)),
    "FetchKv": mesh_pb2.FetchKvRequest(tokens=[1, 2]),
    "FetchBlob": mesh_pb2.FetchBlobRequest(sha256=bytes(32)),
    "Renew": mesh_pb2.RenewRequest(),
    "TakeAuthority": mesh_pb2.TakeAuthorityRequest(),
}
METHODS = mesh_pb2.DESCRIPTOR.services_by_name["Mesh"].methods_by_name


@dataclass(frozen=True)
class Answer:
    """What a caller got: the code, and every word beside it."""

    code: grpc.StatusCode
    words: str
    answers: int = 0


@dataclass(frozen=True)
class Place:
    """A node under attack."""

    daemon: Daemon
    host: str
    port: int
    node_id: NodeId
    ca: bytes  # DER

    @classmethod
    async def of(cls, daemon: Daemon, ca: bytes) -> "Place":
        now = await daemon.ready()
        at = now.addresses[0]
        return cls(daemon, at.host, at.port, NodeId(now.node_id), ca)

    def log(self) -> str:
        return (self.daemon.data_dir / "logs" / "kith.log").read_text()

    async def logs(self, *words: str) -> None:
        """Wait for a line with all these words."""
        async with asyncio.timeout(WITHIN_S):
            while not any(all(word in line for word in words) for line in self.log().splitlines()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def facts(self) -> int:
        return (await self.daemon.status()).facts


class Attacker:
    """Args: `shown`: whose key and certificate are shown; None: none is."""

    def __init__(self, shown: Enrolment | None) -> None:
        self.shown = shown

    def channel(self, place: Place) -> grpc.aio.Channel:
        key = chain = None
        if self.shown is not None:
            key = self.shown.private_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            chain = pem(self.shown.identity.certificate)
        credentials = grpc.ssl_channel_credentials(pem(place.ca), key, chain)
        named = ("grpc.ssl_target_name_override", tls_name_of(place.node_id))
        own = ("grpc.use_local_subchannel_pool", 1)
        return grpc.aio.secure_channel(target(place.host, place.port), credentials, options=[named, own])

    async def call(self, place: Place, rpc: str, request: Any = None) -> Answer:
        """Make one call and wait for its end."""
        async with self.channel(place) as channel:
            method = getattr(mesh_pb2_grpc.MeshStub(channel), rpc)
            asked = REQUESTS[rpc] if request is None else request
            call = method(timeout=WITHIN_S) if METHODS[rpc].client_streaming else method(asked, timeout=WITHIN_S)
            answers = 0
            try:
                if METHODS[rpc].client_streaming:
                    # Where the call was ended meanwhile, its status comes with the reading; writing knows less.
                    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await call.write(asked)
                        await call.done_writing()
                if METHODS[rpc].server_streaming:
                    async for _ in call:
                        answers += 1
                else:
                    await call
                    answers = 1
            except grpc.aio.AioRpcError as error:
                said = problem_of(error)
                words = [str(error), str(said), str(error.trailing_metadata()), str(error.initial_metadata())]
                return Answer(error.code(), " ".join(words), answers)
            except asyncio.InvalidStateError:
                return Answer(await call.code(), f"{await call.details()} {await call.trailing_metadata()}", answers)
            return Answer(await call.code(), "", answers)

    @asynccontextmanager
    async def link(self, place: Place) -> AsyncIterator["RawLink"]:
        """A link as a member opens it."""
        assert self.shown is not None
        async with self.channel(place) as channel:
            call = mesh_pb2_grpc.MeshStub(channel).Link(timeout=None)
            link = RawLink(call)
            hello = membership_pb2.Hello(
                node_id=self.shown.key.node_id,
                incarnation=secrets.randbits(63) + 1,
                public_key=self.shown.key.public_key,
                protocol_version=PROTOCOL_VERSION,
                protocol_version_min=PROTOCOL_VERSION,
                name="attacker",
                life=1,
                certificate=self.shown.identity.certificate,
            )
            await call.write(mesh_pb2.LinkMessage(hello=hello))
            await link.until("hello")
            await link.push([], [self.shown.identity.certificate])
            try:
                yield link
            finally:
                call.cancel()


class RawLink:
    """An open link. `heard` is everything that came."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.heard: list[mesh_pb2.LinkMessage] = []

    async def push(self, facts: Sequence[facts_pb2.SignedFact], certificates: Sequence[bytes] = ()) -> None:
        push = facts_pb2.FactPush(facts=facts, certificates=certificates)
        await self.say(mesh_pb2.LinkMessage(fact_push=push))

    async def say(self, message: mesh_pb2.LinkMessage) -> None:
        await self._call.write(message)

    async def held(self, fact: Fact) -> None:
        """Wait until the other side has this fact on its disk."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                message = await self.until("fact_receipt")
                if any(
                    (at.author_id, at.incarnation, at.stream) == fact.stream_id and at.sequence >= fact.sequence
                    for at in message.fact_receipt.positions
                ):
                    return

    async def until(self, kind: str) -> mesh_pb2.LinkMessage:
        async with asyncio.timeout(WITHIN_S):
            while True:
                message = await self._call.read()
                assert isinstance(message, mesh_pb2.LinkMessage), "the link ended"
                self.heard.append(message)
                if message.WhichOneof("message") == kind:
                    return message

    async def end(self) -> Answer:
        """Wait until the other side ends the link."""
        async with asyncio.timeout(WITHIN_S):
            try:
                while isinstance(message := await self._call.read(), mesh_pb2.LinkMessage):
                    self.heard.append(message)
            except grpc.aio.AioRpcError as error:
                return Answer(error.code(), str(error), len(self.heard))
            return Answer(await self._call.code(), f"{await self._call.details()}", len(self.heard))
