"""Blobs between this node's disk and its peers: what is asked for is put, read, fetched or dropped.

Idea: a blob is named by its hash, so it may come from anybody. Where copies belong is decided by mesh/copies.py; this
carries it out, and tells it of every blob that became durable here. `get` reads the own disk, then asks live peers, the
likeliest holder first; one that says nothing for a moment (a frozen machine looks alive for seconds) is not waited for:
the next is asked beside it, and the first whole answer counts. Who reads the same blob at the same time shares one
transfer: all tasks of a job begin with its document, and its holder would send it to each.

Does not: decide who holds what.
"""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass

from mesh import effects, events
from mesh.copies import BLOB_BYTES_MAX
from mesh.identity import NodeId
from mesh.rate import Rate
from mesh.rendezvous import holders
from mesh.wire import common_pb2, mesh_pb2, mesh_pb2_grpc
from node.background import Background
from node.errors import KithError
from node.limits import BLOB_BYTES_BURST, BLOB_BYTES_PER_S
from node.logs import log, where
from node.once import Once
from node.rpc import calling
from node.shared import Shared
from node.store import Store

CHUNK_BYTES = 256 << 10
#: A transfer that brings nothing for so long is given up: a chunk needs 85 KB/s.
SILENT_MAX_S = 3.0
#: And a whole blob takes no longer: 64 MiB at 85 KB/s.
FETCH_WITHIN_S = 800.0
#: While all transfers of a blob were silent for so long, the next peer is asked too.
ASK_NEXT_S = 0.4
#: Blobs of others that were read lately and are not held here: every task of a job reads its document. The next one
#: sends away those that nobody read for so long.
READ_BYTES_MAX = 32 << 20
READ_KEPT_S = 60.0

#: That a blob changed on the disk is logged again after this.
CHANGED_AGAIN_S = 3600.0

Post = Callable[[events.Event], None]
StubOf = Callable[[NodeId], "mesh_pb2_grpc.MeshAsyncStub | None"]


@dataclass
class _Transfer:
    """`heard_at` is when the last chunk came, or the asking; in the loop's time."""

    heard_at: float


class Blobs:
    def __init__(
        self,
        store: Store,
        post: Post,
        stub_of: StubOf,
        live_peers: Callable[[], list[NodeId]],
        pace: Rate | None = None,
    ) -> None:
        """`pace`: bytes a second that are fetched for one peer which wants them held here."""
        self._store = store
        self._post = post
        self._stub_of = stub_of
        self._live_peers = live_peers
        self._transfers = Background()
        self._pace = pace or Rate(BLOB_BYTES_PER_S, BLOB_BYTES_BURST)
        self._reading: Shared[bytes, bytes] = Shared()
        self._changed = Once(CHANGED_AGAIN_S)
        self._read_lately: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # when, in the loop's time

    async def put(self, content: bytes) -> common_pb2.BlobRef:
        """Store durably on this node. Raises `KithError` (`disk-full`)."""
        ref = common_pb2.BlobRef(sha256=await self._store.put_blob(content), size_bytes=len(content))
        self._post(events.BlobStored(ref))
        return ref

    async def get(self, ref: common_pb2.BlobRef) -> bytes:
        """The content, from here or, where it is not here as it was put or can not be read, from any live peer.

        Raises `KithError` (`blob-missing`).
        """
        if (lately := self._read_lately.get(ref.sha256)) is not None:
            self._remember(ref.sha256, lately[1])
            return lately[1]
        with contextlib.suppress(KithError):  # a bad page; the store's log tells of it
            content = await self._store.get_blob(ref.sha256)
            if content is not None and hashlib.sha256(content).digest() == ref.sha256:
                return content
            if content is not None and self._changed.due(ref.sha256):
                log("error", f"the content {ref.sha256.hex()[:12]} changed on the disk: check it")
        content = await self._from_peers(ref)
        self._remember(ref.sha256, content)
        return content

    async def _from_peers(self, ref: common_pb2.BlobRef) -> bytes:
        """Raises `KithError` (`blob-missing`)."""

        def ask() -> Coroutine[None, None, bytes]:
            peers = self._live_peers()
            return self._first_of(holders(ref.sha256, peers, count=len(peers)), ref)

        if ref.sha256 in self._reading:
            with contextlib.suppress(KithError):  # a holder may have come since the other began
                async with self._reading.of(ref.sha256, ask) as content:
                    return content
        async with self._reading.of(ref.sha256, ask) as content:
            return content

    async def _first_of(self, peers: list[NodeId], ref: common_pb2.BlobRef) -> bytes:
        """The first whole answer; peers are asked in turn, and beside each other where the earlier are silent. Raises
        `KithError` (`blob-missing`)."""
        now = asyncio.get_running_loop().time
        running: dict[asyncio.Task[bytes | None], _Transfer] = {}
        try:
            while peers or running:
                quiet_s = min((now() - transfer.heard_at for transfer in running.values()), default=ASK_NEXT_S)
                if peers and quiet_s >= ASK_NEXT_S:
                    transfer = _Transfer(now())
                    task = asyncio.create_task(self._content_from(peers.pop(0), ref, transfer), name="read a blob")
                    running[task] = transfer
                    continue
                wait_s = ASK_NEXT_S - quiet_s if peers else None
                done, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    if (content := task.result()) is not None:
                        return content
            raise KithError(
                "blob-missing",
                f"no node in sight holds the content {ref.sha256.hex()[:12]}",
                "Bring back a node that held it; the job goes on by itself then.",
            )
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _remember(self, sha256: bytes, content: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._read_lately[sha256] = (now, content)
        self._read_lately.move_to_end(sha256)
        size = sum(len(kept) for _, kept in self._read_lately.values())
        for name, (read_at, kept) in list(self._read_lately.items()):
            if size <= READ_BYTES_MAX and now < read_at + READ_KEPT_S:
                break
            del self._read_lately[name]
            size -= len(kept)

    def fetch(self, effect: effects.FetchBlob) -> None:
        self._transfers.spawn(self._fetch(effect.peer, effect.ref), "blobs")

    def drop(self, sha256: Iterable[bytes]) -> None:
        self._transfers.spawn(self._store.drop_blobs(list(sha256)), "blobs")

    async def close(self) -> None:
        await self._transfers.cancel()

    async def _fetch(self, peer: NodeId, ref: common_pb2.BlobRef) -> None:
        refused = False
        try:
            await asyncio.sleep(self._pace.charge(peer, asyncio.get_running_loop().time(), 0.0))
            if await self._stored(peer, ref):
                self._post(events.BlobStored(ref, peer))
                return
        except KithError as error:
            refused = error.code == "disk-full"
            log("warning", f"a copy was not made here: {error.message}")
        except Exception as error:  # whatever it was: who asked for it hears an answer
            log("error", f"fetching a blob: {where(error)}")
        self._post(events.BlobNotStored(ref, peer, refused))

    async def _stored(self, peer: NodeId, ref: common_pb2.BlobRef) -> bool:
        if await self._store.has_blob(ref.sha256):
            return True
        content = await self._content_from(peer, ref, _Transfer(asyncio.get_running_loop().time()))
        if content is None:
            return False
        self._pace.charge(peer, asyncio.get_running_loop().time(), len(content))
        await self._store.put_blob(content)
        return True

    async def _content_from(self, peer: NodeId, ref: common_pb2.BlobRef, transfer: _Transfer) -> bytes | None:
        """The blob from `peer`, checked against its hash; None where it could not be had."""
        stub = self._stub_of(peer)
        if stub is None:
            return None
        content = bytearray()
        try:
            with calling():
                call = stub.FetchBlob(mesh_pb2.FetchBlobRequest(sha256=ref.sha256), timeout=FETCH_WITHIN_S)
                try:
                    async with asyncio.timeout(SILENT_MAX_S) as silence:
                        async for chunk in call:
                            transfer.heard_at = asyncio.get_running_loop().time()
                            silence.reschedule(transfer.heard_at + SILENT_MAX_S)
                            content += chunk.data
                            if len(content) > BLOB_BYTES_MAX:
                                return None
                finally:
                    call.cancel()
        except (KithError, TimeoutError):
            return None
        return bytes(content) if hashlib.sha256(content).digest() == ref.sha256 else None
