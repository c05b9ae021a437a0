"""The user's model folder: GGUF files by name, each with a manifest that says what it is and where it came from.

Idea: a file becomes part of the store in one move, after its header was read and its hash compared; until then it is
`.unfinished/HASH.part`, where a later pull of the same file goes on. The manifest (NAME.json) is written first, so a
file that is in place has one. A node that serves a file holds a shared lock on it, whatever its data directory, so
`rm` refuses what any node of this user runs from.

Not guaranteed: a file that someone changed later, at the same size, is noticed only by `verify`; a file that a program
other than a node reads is not seen as used.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from node import gguf
from node.errors import ExitCode, KithError
from node.files import sync_folder, write_atomically
from node.models import default
from node.paths import models_dir

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.gguf")
#: One of several files of a model: llama.cpp wants all of them side by side, a store of single files holds none.
SPLIT_PATTERN = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
MANIFEST_BYTES_MAX = 64 << 10
#: Names of a file's revisions that are remembered. Threat: a manifest that grows at every pull.
REVISIONS_MAX = 32
#: Left free on the disk beside a file that is pulled.
FREE_BYTES_MARGIN = 256 << 20
UNFINISHED, COPY_PREFIX = ".unfinished", "copy-"
_LOCK = ".store-lock"
_BAD = ExitCode.BAD_INPUT


@dataclass(frozen=True)
class Manifest:
    """Empty strings and zeros: not known."""

    sha256: str = ""  # hex
    size_bytes: int = 0
    source: str = ""  # hf://…, file:…, peer:…, pypi:…
    revision: str = ""  # the commit, for hf://
    pulled_as: str = ""  # for hf://: branches, tags and commits that were asked for, between blanks
    licence: str = ""
    model: str = ""  # as the file calls itself
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    context_tokens: int = 0  # trained
    added_ms: int = 0  # since 1970


def manifest_of(header: gguf.GgufHeader, **known: Any) -> Manifest:
    """What the file says of itself, and what is `known` beside it or better."""
    said = Manifest(
        licence=header.licence,
        model=header.name,
        architecture=header.architecture,
        quantization=header.quantization,
        parameters=header.parameters,
        context_tokens=header.context_tokens,
    )
    return replace(said, **known)


@dataclass(frozen=True)
class Entry:
    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Origin:
    """Where a file comes from, and what its source says of it."""

    source: str
    revision: str = ""
    licence: str = ""
    pulled_as: str = ""


class FalseContentError(KithError):
    """A whole file that is not what its hash says."""


def check_name(name: str) -> str:
    """`name` as a file in the store may be called. Raises `KithError` (`bad-model`)."""
    if SPLIT_PATTERN.search(name):
        message = f"{name} is one of several files of a model, which a node can not load from its store"
        raise KithError("bad-model", message, "Choose a quantisation that is one file.", _BAD)
    if not NAME_PATTERN.fullmatch(name):
        message = f"{name!r} can not be the name of a model file here"
        raise KithError("bad-model", message, "Give one by --name: letters, digits and . _ + -, ending in .gguf.", _BAD)
    return name


class ModelStore:
    """Safe for several processes at once. All methods may read disks, so call them in threads of a daemon."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: by default the user's."""
        self.folder = folder or models_dir()

    def entries(self) -> list[Entry]:
        """Every model file, by name; also one that somebody put there by hand, as far as its header tells."""
        try:
            paths = sorted(path for path in self.folder.iterdir() if NAME_PATTERN.fullmatch(path.name))
        except OSError:
            return []
        return [entry for path in paths if (entry := self._entry(path)) is not None]

    def find(self, name: str) -> Entry | None:
        """By file name, with or without its ending; else by the model's own name where only one has it."""
        for candidate in (name, f"{name}.gguf"):
            if NAME_PATTERN.fullmatch(candidate) and (entry := self._entry(self.folder / candidate)) is not None:
                return entry
        called = [entry for entry in self.entries() if name and entry.manifest.model == name]
        return called[0] if len(called) == 1 else None

    def find_hash(self, sha256: str) -> Entry | None:
        return next((entry for entry in self.entries() if entry.manifest.sha256 == sha256.lower()), None)

    def require(self, name: str) -> Entry:
        """Raises `KithError` (`model-unknown`)."""
        if (entry := self.find(name)) is not None:
            return entry
        have = ", ".join(entry.name for entry in self.entries()[:8]) or "none yet"
        message = f"there is no model {name!r} in {self.folder}"
        raise KithError("model-unknown", message, f"Here are: {have}; kith model pull fetches one.", ExitCode.NOT_FOUND)

    def verify(self, entry: Entry) -> str:
        """The file's hash now, read whole. Raises `KithError` (`bad-model`) where the manifest names another."""
        found = file_sha256(entry.path)
        if entry.manifest.sha256 and found != entry.manifest.sha256:
            message = f"{entry.path} has the SHA-256 {found}, not {entry.manifest.sha256}: it was changed or damaged"
            raise KithError("bad-model", message, f"kith model rm {entry.name}, then pull it again.", _BAD)
        return found

    def remove(self, name: str) -> Entry:
        """Raises `KithError` (`model-unknown`, `model-in-use`). Returns what it was."""
        entry = self.require(name)
        with self._locked():
            if in_use(entry.path):
                message = f"{entry.name} is in use by a node on this machine"
                raise KithError("model-in-use", message, "Stop the node first: kith down.", ExitCode.UNAVAILABLE)
            entry.path.unlink(missing_ok=True)
            self._manifest_path(entry.path).unlink(missing_ok=True)
        return entry

    # What is under way

    def unfinished(self) -> list[tuple[Path, int]]:
        """Parts of files that were not pulled to their end, and folders of copies; with the bytes that they have."""
        found = []
        with contextlib.suppress(OSError):
            for path in sorted((self.folder / UNFINISHED).iterdir()):
                with contextlib.suppress(OSError):
                    if path.name.startswith(COPY_PREFIX):
                        found.append((path, sum(map(_own_bytes, path.iterdir()))))
                    elif path.suffix == ".part":
                        found.append((path, path.stat().st_size))
        return found

    def drop_unfinished(self) -> int:
        """Remove those that nobody writes to now; bytes that this freed."""
        freed = 0
        for path, size in self.unfinished():
            with contextlib.suppress(OSError), _opened(path) as handle:
                if _lock(handle, fcntl.LOCK_EX):
                    path.unlink() if path.suffix == ".part" else shutil.rmtree(path)
                    freed += size
        return freed

    @contextlib.contextmanager
    def copying(self) -> Iterator[Path]:
        """A folder for a copy, gone afterwards; `drop_unfinished` finds it where this process was killed."""
        folder = self.folder / UNFINISHED
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=COPY_PREFIX, dir=folder) as name, _opened(Path(name)) as handle:
            _lock(handle, fcntl.LOCK_EX)
            yield Path(name)

    def part_path(self, sha256: str) -> Path:
        return self.folder / UNFINISHED / f"{sha256}.part"

    @contextlib.contextmanager
    def part(self, sha256: str, size_bytes: int, *, anew: bool = False) -> Iterator[IO[bytes]]:
        """The part of a file, opened for writing at its end; nobody else writes to it meanwhile. It stays afterwards.
        `anew`: what came earlier is thrown away.

        Raises `KithError` (`disk-full`, `busy`, `bad-model` where the folder can not be used).
        """
        assert re.fullmatch(r"[0-9a-f]{64}", sha256)
        with told_of_disk(self.folder):
            folder = self.folder / UNFINISHED
            folder.mkdir(parents=True, exist_ok=True)
            with self.part_path(sha256).open("ab") as file:
                if not _lock(file, fcntl.LOCK_EX) or not _is_at(file, self.part_path(sha256)):
                    message = f"another pull of {sha256[:12]} is under way"
                    raise KithError("busy", message, "Wait for it.", ExitCode.UNAVAILABLE, 10.0)
                if file.tell() > size_bytes or anew:
                    file.truncate(0)  # no beginning of this file
                    file.seek(0)
                self.check_room(size_bytes - file.tell())
                yield file

    def check_room(self, wanted_bytes: int) -> None:
        """Raises `KithError` (`disk-full`)."""
        free = shutil.disk_usage(self.folder).free
        if wanted_bytes + FREE_BYTES_MARGIN > free:
            message = f"{self.folder} has {free / 1e9:.1f} GB free; the model needs {wanted_bytes / 1e9:.1f} more"
            raise KithError("disk-full", message, _ROOM, ExitCode.UNAVAILABLE)

    def finish(self, part: Path, name: str, sha256: str, origin: Origin) -> Entry:
        """Take a whole part into the store: hash and header are checked, then it is moved. Reads the file once.

        Raises `FalseContentError` and other `KithError`s (`bad-model`, `model-exists`). A part that is not what it
        should be is removed.
        """
        found = file_sha256(part)
        if found != sha256:
            part.unlink(missing_ok=True)
            message = f"what came for {name} has the SHA-256 {found}, not {sha256}; it was thrown away"
            remedy = "Pull it again; where this repeats, the source is not sound."
            raise FalseContentError("bad-model", message, remedy, _BAD)
        return self.take(part, name, sha256, origin)

    def take(self, part: Path, name: str, sha256: str, origin: Origin) -> Entry:
        """As `finish`, for a file whose hash was just computed. One that is in place already gets its manifest."""
        path = self.folder / check_name(name)
        in_place = part == path
        try:
            header = gguf.read_header(part)
        except KithError as error:
            if not in_place:
                part.unlink(missing_ok=True)
            raise KithError("bad-model", f"{name} is no model file: {error.message}", error.remedy, _BAD) from error
        manifest = manifest_of(
            header,
            sha256=sha256,
            size_bytes=part.stat().st_size,
            source=origin.source,
            revision=origin.revision,
            pulled_as=origin.pulled_as,
            licence=origin.licence or header.licence,
            added_ms=time.time_ns() // 1_000_000,
        )
        with told_of_disk(self.folder), self._locked():
            if not in_place:
                there = self.occupied(name, sha256)
                if there is not None:
                    part.unlink(missing_ok=True)
                    return there
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            self._write(path, manifest)
            if not in_place:
                part.replace(path)  # also over the same content that had no manifest
            sync_folder(self.folder)
        return Entry(path, manifest)

    def pulled_again(self, entry: Entry, revision: str) -> Entry:
        """Note that another revision has this very file. Raises `KithError` (`disk-full`, `bad-model`)."""
        names = entry.manifest.pulled_as.split()
        if revision in names:
            return entry
        noted = replace(entry.manifest, pulled_as=" ".join([*names, revision][-REVISIONS_MAX:]))
        with told_of_disk(self.folder), self._locked():
            self._write(entry.path, noted)
        return Entry(entry.path, noted)

    def _write(self, path: Path, manifest: Manifest) -> None:
        write_atomically(self._manifest_path(path), json.dumps(asdict(manifest), indent=1).encode(), 0o644)

    def occupied(self, name: str, sha256: str) -> Entry | None:
        """The entry `name`, where it is this very file. Raises `KithError` (`model-exists`) where it is another one."""
        path = self.folder / name
        if not path.exists():
            return None
        entry = self._entry(path)
        known = entry.manifest.sha256 if entry is not None else ""
        if (known or file_sha256(path)) != sha256:
            message = f"{name} is already in {self.folder}, with other content"
            raise KithError("model-exists", message, f"Give --name, or remove it first: kith model rm {name}", _BAD)
        return entry if known else None

    # Inside

    def _entry(self, path: Path) -> Entry | None:
        try:
            size = path.stat().st_size
        except OSError:
            return None
        manifest = _read_manifest(self._manifest_path(path))
        if manifest is not None and manifest.size_bytes == size:
            return Entry(path, manifest)
        try:
            header = gguf.read_header(path)
        except KithError:
            return Entry(path, Manifest(size_bytes=size))
        known = path.name == default.DEFAULT_FILE and size == default.DEFAULT_BYTES
        described = manifest_of(
            header,
            sha256=default.DEFAULT_SHA256 if known else "",
            size_bytes=size,
            source=f"pypi:{default.REQUIREMENT}" if known else "",
            licence=header.licence or (default.DEFAULT_LICENCE if known else ""),
        )
        return Entry(path, described)

    @staticmethod
    def _manifest_path(path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / _LOCK).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def hold(path: Path) -> IO[bytes] | None:
    """A mark that the file is used, until it is closed; None where the file can not be opened or locked."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    if _lock(file, fcntl.LOCK_SH):
        return file
    file.close()
    return None


def in_use(path: Path) -> bool:
    """Does a node on this machine hold the file?"""
    try:
        with path.open("rb") as file:
            return not _lock(file, fcntl.LOCK_EX)
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """Hex. Raises `KithError` (`bad-model`)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise KithError("bad-model", f"{path} can not be read: {error.strerror}", "Look at its owner.", _BAD) from error


@contextlib.contextmanager
def told_of_disk(folder: Path) -> Iterator[None]:
    """Turns an `OSError` of the disk into a `KithError`: `disk-full`, or `bad-model` where the folder is not usable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = f"the disk of {folder} is full; what came so far is kept"
            raise KithError("disk-full", message, f"{_ROOM} The next pull goes on.", ExitCode.UNAVAILABLE) from error
        if error.errno is None:
            raise  # a library's own error
        message = f"the model folder {folder} can not be used: {error.strerror}"
        raise KithError("bad-model", message, "Mend it, or name another by KITH_MODELS.", _BAD) from error


_FULL = (28, 122)  # ENOSPC, EDQUOT
_ROOM = "Make room (kith model rm frees some), or name another folder by KITH_MODELS."


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still has this name: whoever held it before may have moved it into the store."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _own_bytes(path: Path) -> int:
    """What removing the file frees: nothing, where it has another name elsewhere."""
    stat = path.stat()
    return stat.st_size if stat.st_nlink == 1 else 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file or folder, to lock it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(file: IO[bytes] | int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_manifest(path: Path) -> Manifest | None:
    """None where there is none, or somebody broke it."""
    try:
        with path.open("rb") as file:
            read = json.loads(file.read(MANIFEST_BYTES_MAX))
        values = {one.name: read.get(one.name, one.default) for one in fields(Manifest)}
    except (OSError, ValueError, AttributeError):
        return None
    if any(type(values[one.name]) is not one.type for one in fields(Manifest)):
        return None
    return Manifest(**values)
