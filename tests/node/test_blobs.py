"""Blobs from a real peer: what is asked for comes checked and durable, and every fetch is answered."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from mesh import effects, events
from mesh.identity import NodeId
from mesh.rate import Rate
from mesh.rendezvous import holders
from mesh.wire import common_pb2, mesh_pb2, mesh_pb2_grpc
from node.blob_sharing import BlobSharing
from node.blobs import CHUNK_BYTES, SILENT_MAX_S, Blobs
from node.errors import KithError
from node.mesh_service import MeshService
from node.rpc import to_kith_error
from node.shared import Shared
from node.store import Store
from tests.node.calling import Port
from tests.node.working import KEY, Posted, no_fatal

PEER = NodeId("b" * 32)
GONE = NodeId("c" * 32)
LARGE = bytes(range(256)) * 10_000  # more than two chunks
assert len(LARGE) > 2 * CHUNK_BYTES


def ref_of(content: bytes) -> common_pb2.BlobRef:
    return common_pb2.BlobRef(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))


class World:
    """A node with one peer that serves its own store, and one that is gone."""

    def __init__(self, store: Store, peer: Store, stub: Callable[[NodeId], Any]) -> None:
        self.posted = Posted()
        self.store, self.peer, self.stub = store, peer, stub
        self.blobs = Blobs(store, self.posted.post, stub, lambda: [GONE, PEER])

    async def fetch(self, peer: NodeId, ref: common_pb2.BlobRef) -> events.BlobStored | events.BlobNotStored:
        self.posted.heard.clear()
        self.blobs.fetch(effects.FetchBlob(peer, ref))
        return cast(
            "events.BlobStored | events.BlobNotStored",
            await self.posted.first((events.BlobStored, events.BlobNotStored)),  # type: ignore[arg-type]
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    stores = [Store(tmp_path / name, no_fatal) for name in ("mine", "theirs")]
    for store in stores:
        store.open(KEY.node_id)
    async with AsyncExitStack() as stack:
        port, unused = Port(tmp_path, stack), cast(Any, None)
        await port.serve(MeshService(unused, unused, BlobSharing(stores[1]), unused))
        stub = await port.member("member")
        one = World(stores[0], stores[1], lambda peer: stub if peer == PEER else None)
        yield one
        await one.blobs.close()
    for store in stores:
        await store.close()


async def test_what_is_put_is_durable_before_it_is_told(world: World) -> None:
    ref = await world.blobs.put(b"content")
    assert ref == ref_of(b"content")
    assert world.posted.heard == [events.BlobStored(ref)]
    assert await world.store.get_blob(ref.sha256) == b"content"


async def test_a_fetched_blob_is_stored_and_told_with_its_source(world: World) -> None:
    await world.peer.put_blob(LARGE)
    assert await world.fetch(PEER, ref_of(LARGE)) == events.BlobStored(ref_of(LARGE), PEER)
    assert await world.store.get_blob(ref_of(LARGE).sha256) == LARGE
    assert await world.fetch(GONE, ref_of(LARGE)) == events.BlobStored(ref_of(LARGE), GONE), "it is here already"


@pytest.mark.parametrize("peer", [PEER, GONE], ids=["not held there", "no such peer"])
async def test_a_fetch_that_comes_to_nothing_says_so(world: World, peer: NodeId) -> None:
    assert await world.fetch(peer, ref_of(b"nowhere")) == events.BlobNotStored(ref_of(b"nowhere"), peer)


async def test_false_content_is_not_taken(world: World) -> None:
    true = ref_of(b"true")
    await world.peer._do(lambda: world.peer._db.execute("INSERT INTO blobs VALUES (?, ?)", (true.sha256, b"false")))
    assert await world.fetch(PEER, true) == events.BlobNotStored(true, PEER)
    assert await world.store.get_blob(true.sha256) is None


async def test_a_blob_for_which_there_is_no_room_is_refused(world: World) -> None:
    await world.peer.put_blob(LARGE)
    world.store.budget_bytes = 1 << 20
    assert await world.fetch(PEER, ref_of(LARGE)) == events.BlobNotStored(ref_of(LARGE), PEER, refused=True)
    with pytest.raises(KithError) as caught:
        await world.blobs.put(LARGE)
    assert caught.value.code == "disk-full"
    assert not world.posted.of(events.BlobStored)


async def test_a_blob_is_read_from_whoever_holds_it(world: World) -> None:
    await world.peer.put_blob(b"theirs")
    assert await world.blobs.get(ref_of(b"theirs")) == b"theirs"
    with pytest.raises(KithError) as caught:
        await world.blobs.get(ref_of(b"nowhere"))
    assert caught.value.code == "blob-missing"


async def test_what_can_not_be_read_here_is_read_from_a_peer(world: World) -> None:
    content = b"a result"
    for store in (world.store, world.peer):
        await store.put_blob(content)
    await world.store._do(lambda: world.store._db.execute("ALTER TABLE blobs RENAME TO bad_pages"))
    assert await world.blobs.get(ref_of(content)) == content


async def test_what_changed_on_the_disk_is_read_from_a_peer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    content = b"a result"
    for store in (world.store, world.peer):
        await store.put_blob(content)
    await world.store._do(lambda: world.store._db.execute("UPDATE blobs SET content = ?", (b"another",)))
    assert await world.blobs.get(ref_of(content)) == content
    assert [line for line in caplog.messages if "changed on the disk" in line]


async def test_a_holder_that_can_not_read_says_so(world: World) -> None:
    await world.peer._do(lambda: world.peer._db.execute("ALTER TABLE blobs RENAME TO bad_pages"))
    call = world.stub(PEER).FetchBlob(mesh_pb2.FetchBlobRequest(sha256=ref_of(b"any").sha256))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert to_kith_error(caught.value, lambda: KithError("?", "it said nothing")).code == "disk-failed"


async def test_what_was_read_lately_is_kept_as_long_as_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, read_again, new = b"old" * 10, b"again" * 10, b"new" * 10
    for content in (old, read_again):
        await world.peer.put_blob(content)
        assert await world.blobs.get(ref_of(content)) == content
    await world.peer.put_blob(new)
    world.blobs._live_peers = lambda: []
    assert await world.blobs.get(ref_of(read_again)) == read_again, "it needs no peer any more"
    assert await world.blobs.get(ref_of(old)) == old
    assert await world.blobs.get(ref_of(read_again)) == read_again
    world.blobs._live_peers = lambda: [PEER]
    monkeypatch.setattr("node.blobs.READ_BYTES_MAX", len(new) + len(read_again))
    assert await world.blobs.get(ref_of(new)) == new
    assert list(world.blobs._read_lately) == [ref_of(content).sha256 for content in (read_again, new)]
    monkeypatch.setattr("node.blobs.READ_KEPT_S", 0.0)
    assert await world.blobs.get(ref_of(new)) == new
    assert not world.blobs._read_lately, "nobody reads it for years"


async def test_a_dropped_blob_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.store.FRESH_S", 0.0)
    ref = await world.blobs.put(b"content")
    world.blobs.drop([ref.sha256, b"\1" * 32])
    # The store takes one after the other, so this read comes after the deletion.
    other = await world.blobs.put(b"other")
    assert await world.store.get_blob(ref.sha256) is None
    assert await world.store.get_blob(other.sha256) == b"other"


async def test_a_silent_holder_holds_up_nobody(world: World) -> None:
    """A frozen machine looks alive for seconds: its kernel accepts the call, and nothing comes."""

    class Frozen(MeshService):
        async def FetchBlob(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
            asked.set()
            await asyncio.Event().wait()
            yield mesh_pb2.BlobChunk()

    asked = asyncio.Event()
    server = grpc.aio.server()
    mesh_pb2_grpc.add_MeshServicer_to_server(
        Frozen(cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None)), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await world.peer.put_blob(LARGE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        frozen, working = mesh_pb2_grpc.MeshStub(channel), world.stub
        first, second = holders(ref_of(LARGE).sha256, [GONE, PEER], 2)
        stub_of = {first: frozen, second: working(PEER)}
        blobs = Blobs(world.store, world.posted.post, stub_of.get, lambda: [first, second])
        async with asyncio.timeout(SILENT_MAX_S):
            assert await blobs.get(ref_of(LARGE)) == LARGE
        assert asked.is_set(), "the silent one was asked first"
        assert not await world.store.has_blob(ref_of(LARGE).sha256), "reading makes no copy"
        stub_of[second] = frozen
        assert await blobs.get(ref_of(LARGE)) == LARGE, "what was read lately is not fetched again"
        await blobs.close()
    await server.stop(None)


class Holding(MeshService):
    """Sends the beginning of what it holds, and the rest once it may."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None))
        self.asked = self.ended = 0
        self.may = asyncio.Event()

    async def FetchBlob(self, request: Any, context: Any) -> AsyncIterator[mesh_pb2.BlobChunk]:
        self.asked += 1
        try:
            yield mesh_pb2.BlobChunk(size_bytes=len(LARGE))
            await self.may.wait()
            yield mesh_pb2.BlobChunk(data=LARGE)
        finally:
            self.ended += 1


async def test_who_reads_the_same_at_the_same_time_shares_one_transfer(world: World) -> None:
    """All tasks of a job read its document at once, from the same likeliest holder; each may be stopped alone."""
    holding = Holding()
    server = grpc.aio.server()
    mesh_pb2_grpc.add_MeshServicer_to_server(holding, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - any state may be asked for
                await asyncio.sleep(0.01)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = mesh_pb2_grpc.MeshStub(channel)
        blobs = Blobs(world.store, world.posted.post, {PEER: stub}.get, lambda: [PEER])
        given_up = [asyncio.ensure_future(blobs.get(ref_of(LARGE))) for _ in range(2)]
        await until(lambda: holding.asked == 1)
        for one in given_up:
            one.cancel()
        assert [type(one) for one in await asyncio.gather(*given_up, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        await until(lambda: holding.ended == 1)
        reading = [asyncio.ensure_future(blobs.get(ref_of(LARGE))) for _ in range(8)]
        await until(lambda: holding.asked == 2)
        reading.pop(0).cancel()
        holding.may.set()
        found = await asyncio.wait_for(asyncio.gather(*reading), 60)
        assert [one == LARGE for one in found] == [True] * 7
        assert holding.asked == 2
        await blobs.close()
    await server.stop(None)


async def test_many_who_want_what_nobody_holds_are_all_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a job whose document is out of reach. Who joined another's asking asks once more: a holder may have
    come since that began."""
    asked = 0

    async def not_here(sha256: bytes) -> None:
        """All hear it in one step of the loop, however slow the machine is."""

    def nobody() -> list[NodeId]:
        nonlocal asked
        asked += 1
        return [GONE]

    class Bounded(Shared[bytes, bytes]):
        """A loop that never waits is ended by nothing outside it."""

        uses = 0

        def of(self, *arguments: Any) -> Any:
            self.uses += 1
            assert self.uses <= 100, "they ask for ever"
            return super().of(*arguments)

    monkeypatch.setattr(world.store, "get_blob", not_here)
    world.blobs._reading = Bounded()
    world.blobs._live_peers = nobody
    readers = [world.blobs.get(ref_of(b"nowhere")) for _ in range(8)]
    found = await asyncio.gather(*readers, return_exceptions=True)
    assert [error.code for error in found if isinstance(error, KithError)] == ["blob-missing"] * 8
    assert asked == 2, "once, and once more for all who joined"


async def test_a_peer_whose_blobs_came_fast_waits_for_the_next(world: World) -> None:
    limited = Blobs(world.store, world.posted.post, world.stub, lambda: [PEER], Rate(len(LARGE) / 0.4, 1.0))
    for content in (LARGE, b"small"):
        await world.peer.put_blob(content)
    world.blobs = limited
    assert await world.fetch(PEER, ref_of(LARGE)) == events.BlobStored(ref_of(LARGE), PEER)
    began = asyncio.get_running_loop().time()
    assert await world.fetch(PEER, ref_of(b"small")) == events.BlobStored(ref_of(b"small"), PEER)
    assert asyncio.get_running_loop().time() - began > 0.2
    await limited.close()
