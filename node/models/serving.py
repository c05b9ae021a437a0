"""The model files that a node runs from: marked as used, and known by their hash, so that peers can ask for them.

Idea: a file of the store has its hash in its manifest. One that lies elsewhere is read once, in a thread, and its hash
is kept beside the store with size and time of change, so that the next start need not read gigabytes again.

Not guaranteed: that a file which was changed with its time set back is noticed.
"""

import contextlib
import json
from pathlib import Path
from typing import IO

from node import gguf
from node.files import write_atomically
from node.models.store import Entry, ModelStore, file_sha256, hold, manifest_of

HASHES = ".hashes.json"
HASHES_MAX = 256
HASHES_BYTES_MAX = 256 << 10


class Serving:
    """`use` blocks and runs in a thread; the rest is for the event loop."""

    def __init__(self, store: ModelStore | None = None) -> None:
        self._store = store or ModelStore()
        self._held: dict[Path, IO[bytes]] = {}
        self._entries: dict[Path, Entry] = {}

    def mark(self, path: Path) -> None:
        """Hold the file against `kith model rm`."""
        if path not in self._held and (held := hold(path)) is not None:
            self._held[path] = held

    def use(self, path: Path) -> Entry:
        """Learn what the file is; reads it whole where its hash is not known yet. Raises `KithError`."""
        self.mark(path)
        entry = self._described(path)
        self._entries[path] = entry
        return entry

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def sha256_of(self, path: Path | None) -> bytes:
        """Empty while it is not known."""
        entry = self._entries.get(path) if path is not None else None
        return bytes.fromhex(entry.manifest.sha256) if entry is not None else b""

    def close(self) -> None:
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _described(self, path: Path) -> Entry:
        if path.parent == self._store.folder:
            known = self._store.find(path.name)
            if known is not None and known.path == path and known.manifest.sha256:
                return known
        header = gguf.read_header(path)
        manifest = manifest_of(
            header,
            sha256=known_sha256(path, self._store.folder),
            size_bytes=path.stat().st_size,  # of this file alone, where the model is in several
            source=f"file:{path}",
        )
        return Entry(path, manifest)


def known_sha256(path: Path, folder: Path) -> str:
    """The hash of a file outside the store, from `folder`/.hashes.json or by reading it. Raises `KithError`."""
    path = path.absolute()
    stat = path.stat()
    facts = [stat.st_size, stat.st_mtime_ns]
    kept = _read(folder / HASHES)
    if (known := kept.get(str(path))) and known[:2] == facts:
        return str(known[2])
    sha256 = file_sha256(path)
    kept.pop(str(path), None)
    kept[str(path)] = [*facts, sha256]
    while len(kept) > HASHES_MAX:
        del kept[next(iter(kept))]
    with contextlib.suppress(OSError):  # it is only read again then
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / HASHES, json.dumps(kept).encode(), 0o600)
    return sha256


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        with path.open("rb") as file:
            read = json.loads(file.read(HASHES_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    if not isinstance(read, dict):
        return {}
    return {str(path): facts for path, facts in read.items() if _is_known(facts)}


def _is_known(facts: object) -> bool:
    return isinstance(facts, list) and len(facts) == 3 and isinstance(facts[2], str) and len(facts[2]) == 64
