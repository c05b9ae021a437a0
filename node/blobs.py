"""Blobs between nodes: fetch what is missing, and have others hold copies.

Idea: a blob is named by its hash, so it may come from anybody. `replicate` offers blobs to the peers that should hold
them (rendezvous hash, so everyone agrees) and waits for receipts; an offered node fetches what it lacks from the
offerer, syncs, and answers. `get` reads the own disk, then asks every live peer in turn.

Does not: repair copies when a holder disappears for good (step 2), or limit the disk.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence

import grpc
import grpc.aio

from mesh.identity import NodeId
from mesh.rendezvous import holders
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, mesh_pb2_grpc
from node.errors import KithError
from node.store import Store

#: Largest blob: a document's text has its own, lower limit.
BLOB_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20
FETCH_TIMEOUT_S = 30.0
#: Receipts remembered: one of the few things here that could grow for ever.
RECEIPTS_MAX = 10_000

Send = Callable[[NodeId, mesh_pb2.LinkMessage], bool]
StubOf = Callable[[NodeId], "mesh_pb2_grpc.MeshAsyncStub | None"]


class Blobs:
    def __init__(self, store: Store, send: Send, stub_of: StubOf, live_peers: Callable[[], list[NodeId]]) -> None:
        self._store = store
        self._send = send
        self._stub_of = stub_of
        self._live_peers = live_peers
        self._held_by: dict[bytes, set[NodeId]] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def put(self, content: bytes) -> common_pb2.BlobRef:
        """Store durably on this node."""
        return common_pb2.BlobRef(sha256=await self._store.put_blob(content), size_bytes=len(content))

    async def get(self, ref: common_pb2.BlobRef) -> bytes:
        """The content, from here or from any live peer. Raises `KithError` (`blob-missing`)."""
        content = await self._store.get_blob(ref.sha256)
        if content is not None:
            return content
        peers = holders(ref.sha256, self._live_peers(), count=len(self._live_peers()))
        for peer in peers:
            if (content := await self._fetch(peer, ref)) is not None:
                await self._store.put_blob(content)
                return content
        raise KithError(
            "blob-missing",
            f"no node in sight holds the content {ref.sha256.hex()[:12]}",
            "Bring back a node that held it; the job goes on by itself then.",
        )

    def wanted_holders(self, ref: common_pb2.BlobRef, copies: int) -> list[NodeId]:
        """Live peers that should hold a copy besides this node."""
        return holders(ref.sha256, self._live_peers(), copies - 1)

    async def replicate(self, refs: Sequence[common_pb2.BlobRef], copies: int, deadline_s: float) -> int:
        """Have `copies` nodes hold all blobs, this one included. Returns on how many they are when the time is up."""
        offered: set[NodeId] = set()
        clock = asyncio.get_running_loop()
        deadline = clock.time() + deadline_s
        while True:
            self._changed.clear()
            peers = {peer for ref in refs for peer in self.wanted_holders(ref, copies)}
            for peer in sorted(peers - offered):
                offered.add(peer)
                self._send(peer, mesh_pb2.LinkMessage(blob_offer=facts_pb2.BlobOffer(blobs=refs)))
            held = self.copies(refs)
            left = deadline - clock.time()
            if held >= min(copies, 1 + len(self._live_peers())) or left <= 0:
                return held
            # Members come and go meanwhile: look again at least four times a second.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.25, left)):
                    await self._changed.wait()

    def holders_of(self, refs: Iterable[common_pb2.BlobRef]) -> set[NodeId] | None:
        """Peers that hold all of `refs`; None where there are none to hold."""
        sets = [self._held_by.get(ref.sha256, set()) for ref in refs]
        return set.intersection(*sets) if sets else None

    def copies(self, refs: Iterable[common_pb2.BlobRef]) -> int:
        """Nodes known to hold all of `refs`, this one included."""
        return 1 + len(self.holders_of(refs) or ())

    def offer_received(self, peer: NodeId, offer: facts_pb2.BlobOffer) -> None:
        task = asyncio.create_task(self._take(peer, offer), name="take blobs")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def receipt_received(self, peer: NodeId, receipt: facts_pb2.BlobReceipt) -> None:
        for sha256 in receipt.sha256:
            if len(self._held_by) >= RECEIPTS_MAX:
                self._held_by.pop(next(iter(self._held_by)))
            self._held_by.setdefault(sha256, set()).add(peer)
        self._changed.set()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, peer: NodeId, offer: facts_pb2.BlobOffer) -> None:
        receipt = facts_pb2.BlobReceipt()
        for ref in offer.blobs:
            if ref.size_bytes > BLOB_BYTES_MAX:
                receipt.refused.append(ref.sha256)
                continue
            if not await self._store.has_blob(ref.sha256):
                content = await self._fetch(peer, ref)
                if content is None:
                    continue
                await self._store.put_blob(content)
            receipt.sha256.append(ref.sha256)
        self._send(peer, mesh_pb2.LinkMessage(blob_receipt=receipt))

    async def _fetch(self, peer: NodeId, ref: common_pb2.BlobRef) -> bytes | None:
        """The blob from `peer`, checked against its hash; None where it could not be had."""
        stub = self._stub_of(peer)
        if stub is None:
            return None
        content = bytearray()
        try:
            call = stub.FetchBlob(mesh_pb2.FetchBlobRequest(sha256=ref.sha256), timeout=FETCH_TIMEOUT_S)
            async for chunk in call:
                content += chunk.data
                if len(content) > BLOB_BYTES_MAX:
                    call.cancel()
                    return None
        except grpc.aio.AioRpcError:
            return None
        return bytes(content) if hashlib.sha256(content).digest() == ref.sha256 else None
