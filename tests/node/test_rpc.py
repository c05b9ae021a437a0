"""How calls end: with a real server and a real channel, which this side closes under them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from mesh.wire import engine_pb2, mesh_pb2, mesh_pb2_grpc
from node.errors import ExitCode, KithError
from node.rpc import abort, calling
from tests.node.engine.engines import PATIENCE

Call = Callable[["mesh_pb2_grpc.MeshAsyncStub"], Awaitable[Any]]


class Service(mesh_pb2_grpc.MeshServicer):
    """Calls begin and never end; an embedding is refused."""

    __abstractmethods__: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def Score(self, request: Any, context: Any) -> engine_pb2.ScoreReply:
        self.began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def Embed(self, request: Any, context: Any) -> engine_pb2.EmbedReply:
        await abort(context, KithError("busy", "others are first", retry_after_s=2.0))

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[engine_pb2.GenerateEvent]:
        yield engine_pb2.GenerateEvent(started=engine_pb2.GenerateEvent.Started(prompt_tokens=1))
        self.began.set()
        await asyncio.Event().wait()


class Peer:
    """A server, and a channel to it."""

    def __init__(self) -> None:
        self.service = Service()  # type: ignore[abstract]

    async def __aenter__(self) -> "Peer":
        self.server = grpc.aio.server()
        mesh_pb2_grpc.add_MeshServicer_to_server(self.service, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub: mesh_pb2_grpc.MeshAsyncStub = mesh_pb2_grpc.MeshStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)

    async def asked(self, call: Call) -> Any:
        with calling(gone):
            return await call(self.stub)


def gone() -> KithError:
    return KithError("node-unreachable", "it went away", "Ask another.", ExitCode.UNAVAILABLE)


async def unary(stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
    await stub.Score(mesh_pb2.ScoreCall())


async def stream(stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
    async for _ in stub.Generate(mesh_pb2.GenerateCall()):
        pass


async def read_by_hand(stub: "mesh_pb2_grpc.MeshAsyncStub") -> None:
    call = stub.Generate(mesh_pb2.GenerateCall())
    while await call.read() is not grpc.aio.EOF:
        pass


KINDS = pytest.mark.parametrize("call", [unary, stream, read_by_hand])


@KINDS
async def test_a_call_whose_channel_is_closed_here_is_one_to_a_peer_that_went_away(call: Call) -> None:
    async with Peer() as peer, asyncio.timeout(PATIENCE):
        asking = asyncio.create_task(peer.asked(call))
        await peer.service.began.wait()
        await peer.channel.close()
        with pytest.raises(KithError) as caught:
            await asking
        assert caught.value.code == "node-unreachable"


@KINDS
async def test_so_is_one_on_a_channel_that_was_closed_before(call: Call) -> None:
    async with Peer() as peer, asyncio.timeout(PATIENCE):
        await peer.channel.close()
        with pytest.raises(KithError) as caught:
            await peer.asked(call)
        assert caught.value.code == "node-unreachable"


@KINDS
async def test_whoever_is_cancelled_is_cancelled(call: Call) -> None:
    async with Peer() as peer, asyncio.timeout(PATIENCE):
        asking = asyncio.create_task(peer.asked(call))
        await peer.service.began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@KINDS
async def test_a_time_that_is_over_is_over_inside_and_outside(call: Call) -> None:
    async with Peer() as peer, asyncio.timeout(PATIENCE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0):
                await peer.asked(call)
        with pytest.raises(TimeoutError), calling(gone):
            async with asyncio.timeout(0.0):
                await call(peer.stub)


async def test_what_the_peer_says_went_wrong_is_what_is_raised() -> None:
    async with Peer() as peer, asyncio.timeout(PATIENCE):
        with pytest.raises(KithError) as caught, calling(gone):
            await peer.stub.Embed(mesh_pb2.EmbedCall())
        assert (caught.value.code, caught.value.retry_after_s) == ("busy", 2.0)
        await peer.server.stop(None)
        with pytest.raises(KithError) as caught, calling(gone):
            await peer.stub.Embed(mesh_pb2.EmbedCall())
        assert caught.value.code == "node-unreachable"
