"""Model files between nodes over real gRPC on loopback: by name or hash, resumed, from the next holder, checked."""

import asyncio
import filecmp
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any

import grpc.aio
import pytest

from mesh.identity import NodeId
from mesh.rate import Rate
from mesh.wire import mesh_pb2, mesh_pb2_grpc
from node.errors import KithError
from node.mesh_service import MeshService
from node.models import peers as peers_module
from node.models.local import pull_file
from node.models.peers import PeerModels, Step
from node.models.sharing import ModelSharing
from node.models.store import Entry, Manifest, ModelStore, file_sha256
from node.rpc import abort
from tests.node.models.gguf_files import gguf_bytes, write_gguf

A, B = NodeId("a" * 32), NodeId("b" * 32)
ELEMENTS = 3_000_000  # 12 MB
SIZE = len(gguf_bytes("Big Model", ELEMENTS))


def same(entry: Entry, content: Path) -> bool:
    return filecmp.cmp(entry.path, content, shallow=False)


def begins(part: Path, content: Path) -> bool:
    return content.read_bytes().startswith(part.read_bytes())


class Node(MeshService):
    """What a node answers to FetchModel; `stop_after` chunks it dies once."""

    def __init__(self, sharing: ModelSharing) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, nothing, nothing)
        self.sharing = sharing
        self.stop_after = 0
        self.offsets: list[int] = []

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        sent = 0
        try:
            async with aclosing(self.sharing.chunks("asker", request)) as chunks:
                async for chunk in chunks:
                    sent += 1
                    if sent == 2:
                        self.offsets.append(request.offset_bytes)
                    yield chunk
                    if self.stop_after and sent > self.stop_after:
                        self.stop_after = 0
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        except KithError as error:
            await abort(context, error)


class World:
    def __init__(self, folder: Path) -> None:
        self.stores = {A: ModelStore(folder / "a"), B: ModelStore(folder / "b")}
        self.mine = ModelStore(folder / "mine")
        self.served: list[Entry] = []
        self.nodes = {
            A: Node(ModelSharing(lambda: self.served, lambda: self.stores[A])),
            B: Node(ModelSharing(list, lambda: self.stores[B])),
        }
        self.stubs: dict[NodeId, Any] = {}
        self.models = PeerModels(self.stubs.get, lambda: self.mine)

    def give(self, node: NodeId, content: Path, name: str = "Tiny-F32.gguf") -> Entry:
        return pull_file(content, self.stores[node], name)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(peers_module, "AGAIN_AFTER_S", 0.01)
    monkeypatch.setattr(peers_module, "WRITE_BYTES", 1 << 20)
    one = World(tmp_path)
    servers, channels = [], []
    for node_id, node in one.nodes.items():
        server = grpc.aio.server()
        mesh_pb2_grpc.add_MeshServicer_to_server(node, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        one.stubs[node_id] = mesh_pb2_grpc.MeshStub(channel)
        servers.append(server)
        channels.append(channel)
    yield one
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(None)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "Big.gguf", "Big Model", ELEMENTS)
    return tmp_path / "Big.gguf"


async def test_by_name_and_by_the_models_own_name(world: World, content: Path) -> None:
    world.give(A, content)
    told: list[Step] = []
    entry, was_here = await world.models.pull([B, A], "Tiny-F32", progress=told.append)
    assert not was_here
    assert same(entry, content)
    assert entry.manifest.source == f"peer:{A}"
    assert entry.manifest.model == "Big Model"
    assert told[-1] == Step(entry.manifest.size_bytes, entry.manifest.size_bytes, A)
    assert await world.models.pull([A], "Big Model") == (entry, True)
    assert world.mine.unfinished() == []


async def test_by_hash(world: World, content: Path) -> None:
    world.give(B, content)
    sha256 = bytes.fromhex(file_sha256(content))
    entry, _ = await world.models.pull([A, B], sha256=sha256, name="Other.gguf")
    assert entry.name == "Other.gguf"
    assert await world.models.pull([], sha256=sha256) == (entry, True)


async def test_file_that_is_served_from_elsewhere(world: World, content: Path) -> None:
    sha256 = file_sha256(content)
    world.served.append(Entry(content, Manifest(sha256, SIZE, f"file:{content}")))
    entry, _ = await world.models.pull([A], "Big")
    assert entry.manifest.sha256 == sha256
    assert str(content) not in entry.manifest.source  # paths of another machine are its own business


async def test_holder_that_dies_is_followed_by_the_next(world: World, content: Path) -> None:
    world.give(A, content)
    world.give(B, content, "SameElsewhere.gguf")
    # The first chunk says what it is, twice; so it dies in the second call, with some data sent.
    world.nodes[A].stop_after = 5
    entry, _ = await world.models.pull([A, B], "Tiny-F32")
    assert same(entry, content)
    assert world.nodes[B].offsets[-1] > 0
    assert entry.manifest.source == f"peer:{B}"


async def test_cancelled_pull_goes_on_later(world: World, content: Path) -> None:
    world.give(A, content)
    begun = asyncio.Event()

    def progress(step: Step) -> None:
        if step.done_bytes:
            begun.set()

    pull = asyncio.create_task(world.models.pull([A], "Tiny-F32", progress=progress))
    await begun.wait()
    pull.cancel()
    await asyncio.gather(pull, return_exceptions=True)
    assert pull.cancelled()
    assert world.mine.entries() == []
    [(_, size)] = world.mine.unfinished()
    assert 0 < size < SIZE
    entry, _ = await world.models.pull([A], "Tiny-F32")
    assert world.nodes[A].offsets[-1] == size
    assert same(entry, content)


async def test_a_pull_that_is_cancelled_while_it_writes_writes_nothing_twice(
    world: World, content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.give(A, content)
    writing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    real = peers_module._write

    def slow(file: IO[bytes], data: bytes) -> None:
        loop.call_soon_threadsafe(writing.set)
        go_on.wait(10)
        real(file, data)

    monkeypatch.setattr(peers_module, "_write", slow)
    pull = asyncio.create_task(world.models.pull([A], "Tiny-F32"))
    await writing.wait()
    pull.cancel()
    loop.call_soon(go_on.set)
    await asyncio.gather(pull, return_exceptions=True)
    [(part, size)] = world.mine.unfinished()
    assert 0 < size < SIZE
    assert begins(part, content)


async def test_changed_file_of_a_peer_is_not_taken(world: World, content: Path) -> None:
    kept = world.give(A, content)
    kept.path.unlink()  # it is linked
    write_gguf(kept.path, "Big Model", ELEMENTS, fill=b"x")
    with pytest.raises(KithError, match="thrown away"):
        await world.models.pull([A], "Tiny-F32")
    assert world.mine.entries() == []
    assert world.mine.unfinished() == []


async def test_what_nobody_has_is_said(world: World) -> None:
    for wanted in ({"model": "Tiny"}, {"sha256": bytes(32)}, {"model": "../../etc/passwd"}):
        with pytest.raises(KithError) as caught:
            await world.models.pull([A, B], **wanted)
        assert caught.value.code == "model-unknown"


async def test_all_holders_gone_in_the_midst(world: World, content: Path) -> None:
    world.give(A, content)
    real = world.nodes[A].sharing.chunks
    node = world.nodes[A]
    node.stop_after = 4

    def progress(step: Step) -> None:
        if step.done_bytes:
            world.stubs.clear()

    with pytest.raises(KithError, match="no node gives the rest") as caught:
        await world.models.pull([A], "Tiny-F32", progress=progress)
    assert caught.value.code == "model-interrupted"
    assert real is not None
    assert len(world.mine.unfinished()) == 1


class Counting(Rate):
    """Lets everything through, and keeps count."""

    def __init__(self) -> None:
        super().__init__(1.0, 1.0)
        self.charged: list[tuple[object, float]] = []

    def charge(self, who: object, now: float, amount: float = 1.0) -> float:
        self.charged.append((who, amount))
        return 0.0


async def test_readers_are_few_and_paced(world: World, content: Path) -> None:
    world.give(A, content)
    pace = Counting()
    sharing = ModelSharing(list, lambda: world.stores[A], pace)
    request = mesh_pb2.FetchModelRequest(name="Tiny-F32")
    readers = [sharing.chunks(who, request) for who in ("x", "x", "y")]
    for reader in readers:
        assert (await anext(reader)).model.name == "Tiny-F32.gguf"
    with pytest.raises(KithError) as caught:
        await anext(sharing.chunks("x", request))
    assert caught.value.code == "too-many-requests"
    for reader in readers:
        await reader.aclose()
    sent = [len(chunk.data) async for chunk in sharing.chunks("x", request)]
    assert sum(sent) == SIZE
    assert max(sent) == 1 << 20
    assert pace.charged == [("x", size) for size in sent[1:]]
