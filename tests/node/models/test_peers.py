"""Model files between nodes over real gRPC on loopback: by name or hash, resumed, from the next holder, checked."""

import asyncio
import filecmp
import threading
from collections.abc import AsyncIterator, Callable, Iterable
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
    """What a node answers to FetchModel; `stop_after` chunks of its second call it dies once. The first only asks what
    the model is: it may have sent as much before it hears that no more is wanted."""

    def __init__(self, sharing: ModelSharing) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, nothing, nothing)
        self.sharing = sharing
        self.stop_after = 0
        self.calls = 0
        self.offsets: list[int] = []

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        sent = 0
        self.calls += 1
        asked_again = self.calls > 1
        try:
            async with aclosing(self.sharing.chunks("asker", request)) as chunks:
                async for chunk in chunks:
                    sent += 1
                    if sent == 2:
                        self.offsets.append(request.offset_bytes)
                    yield chunk
                    if asked_again and self.stop_after and sent > self.stop_after:
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
        self.servers: list[grpc.aio.Server] = []
        self.channels: list[grpc.aio.Channel] = []
        self.models = PeerModels(self.stubs.get, lambda: self.mine)

    async def serve(self, node: MeshService) -> "mesh_pb2_grpc.MeshStub":
        server = grpc.aio.server()
        mesh_pb2_grpc.add_MeshServicer_to_server(node, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.servers.append(server)
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        return mesh_pb2_grpc.MeshStub(self.channels[-1])

    def give(self, node: NodeId, content: Path, name: str = "Tiny-F32.gguf") -> Entry:
        return pull_file(content, self.stores[node], name)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(peers_module, "AGAIN_AFTER_S", 0.01)
    monkeypatch.setattr(peers_module, "WRITE_BYTES", 1 << 20)
    monkeypatch.setattr(peers_module, "SILENT_MAX_S", 1.0)
    one = World(tmp_path)
    for node_id, node in one.nodes.items():
        one.stubs[node_id] = await one.serve(node)
    yield one
    for channel in one.channels:
        await channel.close()
    for server in one.servers:
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
    # The first chunk says what it is; so some data was sent.
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


class Liar(MeshService):
    """A holder that says and sends what it likes: (size, chunks) of a call from an offset on."""

    def __init__(self, says: Callable[[int], tuple[int, Iterable[bytes | None]]]) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, nothing, nothing)
        self.says = says
        self.asked = 0
        self.gone_on = asyncio.Event()

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        self.asked += 1
        size, chunks = self.says(request.offset_bytes)
        said = mesh_pb2.ModelFile(name="Tiny-F32.gguf", sha256=request.sha256, size_bytes=size)
        yield mesh_pb2.BlobChunk(size_bytes=size, model=said)
        for data in chunks:
            if data is None:
                await self.gone_on.wait()
            else:
                yield mesh_pb2.BlobChunk(data=data)


def blocks(content: bytes, start: int = 0) -> list[bytes | None]:
    return [content[at : at + (1 << 20)] for at in range(start, len(content), 1 << 20)]


async def lies(world: World, node: NodeId, says: Callable[[int], tuple[int, Iterable[bytes | None]]]) -> Liar:
    liar = Liar(says)
    world.stubs[node] = await world.serve(liar)
    return liar


def false(size: int) -> Callable[[int], tuple[int, Iterable[bytes | None]]]:
    return lambda start: (size, blocks(bytes(size), start))


async def test_a_holder_of_false_content_is_asked_no_more(world: World, content: Path) -> None:
    world.give(B, content)
    liar = await lies(world, A, false(SIZE))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)
    assert entry.manifest.source == f"peer:{B}"
    assert liar.asked == 2, "what it is, and its bytes: once"


async def test_two_liars_do_not_keep_one_from_the_file(world: World, content: Path) -> None:
    world.give(B, content)
    c = NodeId("c" * 32)
    liars = [await lies(world, A, false(SIZE)), await lies(world, c, false(SIZE))]
    # One of them gives a half, so who lied is not clear from that.
    half = SIZE // 2
    liars[0].says = lambda start: (SIZE, blocks(bytes(half), start) if liars[0].asked < 3 else blocks(bytes(SIZE)))
    entry, _ = await world.models.pull([A, c, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)
    assert max(liar.asked for liar in liars) <= 6


async def test_false_bytes_amid_true_ones_are_found_whoever_gave_them(world: World, content: Path) -> None:
    world.give(B, content)
    # It gives four false blocks and ends; the other one gives the rest, truly.
    await lies(world, A, lambda start: (SIZE, blocks(bytes(4 << 20)) if not start else []))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)


@pytest.mark.parametrize("size", [1000, SIZE - 1, SIZE + 1, 1 << 41], ids=["tiny", "shorter", "longer", "absurd"])
async def test_a_false_size_blocks_nothing_and_throws_away_nothing(world: World, content: Path, size: int) -> None:
    world.give(B, content)
    sha256 = file_sha256(content)
    with world.mine.part(sha256, SIZE) as file:  # of an earlier pull
        file.write(gguf_bytes("Big Model", ELEMENTS)[: 5 << 20])
    await lies(world, A, lambda start: (size, blocks(bytes(min(size, SIZE)), start)))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(sha256))
    assert same(entry, content)
    if size < 5 << 20:
        assert world.nodes[B].offsets[-1] == 5 << 20


async def test_a_holder_that_ends_early_is_followed_by_the_next(world: World, content: Path) -> None:
    world.give(B, content)
    true = gguf_bytes("Big Model", ELEMENTS)
    liar = await lies(world, A, lambda start: (SIZE, [true[start : start + 10]]))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)
    assert world.nodes[B].offsets == [10]
    assert liar.asked == 2


async def test_a_holder_that_gives_next_to_nothing_is_not_waited_for(world: World, content: Path) -> None:
    """Each of its bytes comes soon enough after the one before, and the file would take a month."""
    world.give(B, content)
    true = gguf_bytes("Big Model", ELEMENTS)
    await lies(world, A, lambda start: (SIZE, (true[at : at + 1] for at in range(start, start + 100_000))))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)
    assert 0 < world.nodes[B].offsets[0] < 100_000


async def test_a_holder_that_falls_silent_is_followed_by_the_next(world: World, content: Path) -> None:
    world.give(B, content)
    true = gguf_bytes("Big Model", ELEMENTS)
    await lies(world, A, lambda start: (SIZE, [*blocks(true[: 3 << 20], start), None]))
    entry, _ = await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert same(entry, content)
    assert world.nodes[B].offsets == [3 << 20]


async def test_liars_alone_are_no_end_without_a_word(world: World, content: Path) -> None:
    for node in (A, B):
        await lies(world, node, false(SIZE))
    with pytest.raises(KithError, match="thrown away"):
        await world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content)))
    assert world.mine.unfinished() == []
    liar = await lies(world, A, lambda start: (SIZE + liar.asked, []))  # it says something else each time
    with pytest.raises(KithError, match="no node gives the rest"):
        await world.models.pull([A], sha256=bytes.fromhex(file_sha256(content)))


async def test_what_is_no_model_is_fetched_once(world: World, tmp_path: Path) -> None:
    """Its hash is right: nobody lied, and it comes from nobody else either."""
    (tmp_path / "x").write_bytes(b"no model" * 100)
    entry = Entry(tmp_path / "x", Manifest(file_sha256(tmp_path / "x"), 800))
    world.served.append(entry)
    with pytest.raises(KithError, match="no model file"):
        await world.models.pull([A, B], sha256=bytes.fromhex(entry.manifest.sha256), name="X.gguf")
    assert len(world.nodes[A].offsets) <= 2


async def test_a_file_that_came_and_can_not_be_kept_is_not_fetched_again(
    world: World, content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the manifest is written: no other holder changes that."""
    world.give(A, content)
    tries: list[str] = []

    def full(_self: ModelStore, _part: Path, name: str, *_: object) -> Entry:
        tries.append(name)
        raise KithError("disk-full", "no space is left", "Free some.")

    monkeypatch.setattr(ModelStore, "finish", full)
    with pytest.raises(KithError, match="no space"):
        await asyncio.wait_for(world.models.pull([A, B], sha256=bytes.fromhex(file_sha256(content))), 20)
    assert len(tries) == 1


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
