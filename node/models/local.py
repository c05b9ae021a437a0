"""A model file that the user already has, taken into the store: linked where the disk can, else copied, then hashed.

A link costs no space; a copy is made in a folder of its own, so an interrupted one is never taken for whole.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from node import gguf
from node.errors import ExitCode, KithError
from node.models import default
from node.models.store import Entry, ModelStore, Origin, check_name, file_sha256, told_of_disk

Progress = Callable[[int, int], None]
COPY_BYTES = 4 << 20


def pull_file(
    path: Path,
    store: ModelStore,
    name: str = "",
    progress: Progress = lambda _done, _size: None,
    sha256: str = "",
) -> Entry:
    """Args: `sha256`: what the file must be, hex; empty: anything.

    Raises `KithError` (`bad-model`, `model-exists`, `disk-full`). Blocks; reads the file once or twice."""
    path = path.absolute()
    gguf.read_header(path)  # before anything is copied
    named, name = bool(name), check_name(name or path.name)
    size = path.stat().st_size
    origin = Origin(f"file:{path}")
    if path.parent.resolve() == store.folder.resolve() and name == path.name:
        return store.take(path, name, _checked(path, sha256), origin)  # put there by hand: it gets its manifest
    with told_of_disk(store.folder), store.copying() as folder:
        part = folder / name
        try:
            os.link(path.resolve(), part)
        except OSError:
            store.check_room(size)
            _copy(path, part, size, progress)
        found = _checked(part, sha256)
        if found == default.DEFAULT_SHA256 and not named:
            name = default.DEFAULT_FILE  # where `kith up` without --model looks for it
        return store.take(part, name, found, origin)


def _checked(path: Path, sha256: str) -> str:
    found = file_sha256(path)
    if sha256 and found != sha256:
        message = f"{path.name} has the SHA-256 {found}, not {sha256}"
        raise KithError("bad-model", message, "It is another file, or a damaged one.", ExitCode.BAD_INPUT)
    return found


def _copy(path: Path, part: Path, size: int, progress: Progress) -> None:
    done = 0
    with path.open("rb") as source, part.open("wb") as target:
        while block := source.read(COPY_BYTES):
            target.write(block)
            done += len(block)
            progress(done, size)
    with contextlib.suppress(OSError):
        shutil.copystat(path, part)
