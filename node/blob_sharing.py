"""Blobs to other nodes: what this node's store holds, sent in chunks, so much of it in memory at a time.

Idea: the store reads a blob whole, and it is in memory until its last reader has it or goes away; who wants the same
one shares it. So what counts is bytes of different blobs, of one member and in all. What is beyond is refused before it
is read: the asker goes to another holder, or comes again (blobs.py, mesh/copies.py).

Threat: a member that begins to fetch every blob and takes none of it fills the memory; one that asks and goes away,
again and again, keeps the store's only thread reading, and the journal waits.

Not guaranteed: that four members which do so together leave room for another one.
"""

from collections.abc import AsyncGenerator, Hashable, Iterable
from dataclasses import dataclass

from mesh.rate import Rate
from mesh.wire import mesh_pb2
from node import clock
from node.blobs import CHUNK_BYTES
from node.errors import ExitCode, KithError
from node.limits import (
    BLOB_BYTES_OF_ONE_MAX,
    BLOB_BYTES_OUT_MAX,
    BLOB_READ_BYTES_BURST,
    BLOB_READ_BYTES_PER_S,
    too_many,
)
from node.shared import Shared
from node.store import Store

#: Whoever finds the memory taken comes again after this, seconds.
COME_AGAIN_S = 2.0


@dataclass(eq=False, frozen=True)
class _Sending:
    who: Hashable
    sha256: bytes
    size_bytes: int


class BlobSharing:
    """Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        of_one_bytes: int = BLOB_BYTES_OF_ONE_MAX,
        in_all_bytes: int = BLOB_BYTES_OUT_MAX,
        pace: Rate | None = None,
    ) -> None:
        """`pace`: bytes a second that are read from the disk for one member."""
        self._store = store
        self._of_one_bytes = of_one_bytes
        self._in_all_bytes = in_all_bytes
        self._pace = pace or Rate(BLOB_READ_BYTES_PER_S, BLOB_READ_BYTES_BURST)
        self._held: Shared[bytes, bytes | None] = Shared()
        self._sending: set[_Sending] = set()

    async def chunks(
        self, who: Hashable, request: mesh_pb2.FetchBlobRequest
    ) -> AsyncGenerator[mesh_pb2.BlobChunk, None]:
        """Raises `KithError` (`blob-missing`, `too-many-requests`, `disk-failed`)."""
        sha256 = request.sha256
        size = await self._store.blob_bytes(sha256)
        if size is None:
            raise _missing()
        sending = _Sending(who, sha256, size)
        self._check_room(sending)
        self._sending.add(sending)
        try:
            async with self._held.of(sha256, lambda: self._store.get_blob(sha256)) as content:
                if content is None:  # dropped in this very moment
                    raise _missing()
                yield mesh_pb2.BlobChunk(size_bytes=len(content))
                for start in range(request.offset_bytes, len(content), CHUNK_BYTES):
                    yield mesh_pb2.BlobChunk(data=content[start : start + CHUNK_BYTES])
        finally:
            self._sending.remove(sending)

    def _check_room(self, wanted: _Sending) -> None:
        """Raises `KithError` (`too-many-requests`). What is in memory already costs nothing, whoever wants it."""
        own = [one for one in self._sending if one.who == wanted.who]
        if _held_bytes([*own, wanted]) > self._of_one_bytes:
            raise too_many("this node holds as much for this member as it may", COME_AGAIN_S)
        if _held_bytes([*self._sending, wanted]) > self._in_all_bytes:
            raise too_many("this node holds as much for others as it may", COME_AGAIN_S)
        if wanted.sha256 in self._held:
            return
        if wait_s := self._pace.wait_s(wanted.who, clock.now(), wanted.size_bytes):
            raise too_many("this node read as much for this member as it may", wait_s)


def _held_bytes(sending: Iterable[_Sending]) -> int:
    """Each blob once."""
    return sum({one.sha256: one.size_bytes for one in sending}.values())


def _missing() -> KithError:
    return KithError("blob-missing", "this node does not hold it", "Ask another one.", ExitCode.NOT_FOUND)
