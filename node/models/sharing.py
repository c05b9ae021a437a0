"""Model files to other nodes: what this node serves or keeps in its store, read in chunks, a few at a time.

Idea: a file is asked for by its hash, or by name where the hash is not known; the first chunk says what it is. Disks
are read in threads. Each asker has a part of this node's link, and only so many read at once, so that a fetch of many
gigabytes costs dialogues and heartbeats little.

Threat: a member that asks for one file again and again keeps disk and link busy. It can not ask for anything else:
names are compared with those of the store, never opened.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from pathlib import Path
from typing import BinaryIO

from mesh.rate import Rate
from mesh.wire import mesh_pb2
from node import clock
from node.errors import ExitCode, KithError
from node.limits import MODEL_BYTES_BURST, MODEL_BYTES_PER_S, MODELS_OF_ONE_MAX, MODELS_OUT_MAX, too_many
from node.models.store import Entry, ModelStore

CHUNK_BYTES = 1 << 20
#: Whoever finds all places taken comes again after this.
COME_AGAIN_S = 5.0


class ModelSharing:
    """Belongs to one event loop."""

    def __init__(
        self,
        served: Callable[[], Sequence[Entry]],
        store: Callable[[], ModelStore] = ModelStore,
        pace: Rate | None = None,
    ) -> None:
        """`served`: the files that this node runs from, with their hashes, wherever they lie."""
        self._served = served
        self._store = store
        self._pace = pace or Rate(MODEL_BYTES_PER_S, MODEL_BYTES_BURST)
        self._readers: Counter[Hashable] = Counter()

    async def chunks(
        self, who: Hashable, request: mesh_pb2.FetchModelRequest
    ) -> AsyncGenerator[mesh_pb2.BlobChunk, None]:
        """Raises `KithError` (`model-unknown`, `too-many-requests`, `bad-request`, `bad-model`)."""
        if self._readers[who] >= MODELS_OF_ONE_MAX or self._readers.total() >= MODELS_OUT_MAX:
            raise too_many("this node sends as many model files as it may", COME_AGAIN_S)
        self._readers[who] += 1
        try:
            entry = await asyncio.to_thread(self._find, request)
            manifest = entry.manifest
            said = mesh_pb2.ModelFile(
                name=entry.name,
                sha256=bytes.fromhex(manifest.sha256),
                size_bytes=manifest.size_bytes,
                source=manifest.source if not manifest.source.startswith("file:") else "",
                revision=manifest.revision,
                licence=manifest.licence,
            )
            yield mesh_pb2.BlobChunk(size_bytes=manifest.size_bytes, model=said)
            reader = _Reader(entry.path, request.offset_bytes)
            try:
                while data := await asyncio.to_thread(reader.read):
                    yield mesh_pb2.BlobChunk(data=data)
                    await asyncio.sleep(self._pace.charge(who, clock.now(), len(data)))
            finally:
                reader.close()
        finally:
            self._readers[who] -= 1
            if not self._readers[who]:
                del self._readers[who]

    def _find(self, request: mesh_pb2.FetchModelRequest) -> Entry:
        if request.offset_bytes >= 1 << 63:
            raise KithError("bad-request", "the offset is absurd", "", ExitCode.BAD_INPUT)
        digits = request.sha256.hex()
        known = [*self._served(), *self._store().entries()]
        for entry in known:
            if digits and entry.manifest.sha256 == digits:
                return entry
            names = (entry.name, entry.name.removesuffix(".gguf"), entry.manifest.model)
            if not digits and request.name and request.name in names:
                if not entry.manifest.sha256:
                    message = f"{entry.name} is there without its hash"
                    remedy = "On that node, pull it by its path: kith model pull PATH"
                    raise KithError("bad-model", message, remedy, ExitCode.BAD_INPUT)
                return entry
        raise KithError("model-unknown", "this node does not hold that model", "Ask another one.", ExitCode.NOT_FOUND)


class _Reader:
    """A file that is opened and read in threads, and closed whatever a thread still does."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset = path, offset
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        self._closed = False

    def read(self) -> bytes:
        """The next chunk; empty at the end. Raises `KithError`."""
        with self._lock:
            if self._closed:
                return b""
            try:
                if self._file is None:
                    self._file = self._path.open("rb")
                    self._file.seek(self._offset)
                return self._file.read(CHUNK_BYTES)
            except OSError as error:
                message = f"the model file can not be read there: {error.strerror}"
                raise KithError("model-unknown", message, "Ask another node.", ExitCode.NOT_FOUND) from error

    def close(self) -> None:
        """Waits for a read that is under way: a megabyte."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
