"""API keys of the HTTP door: who may ask from outside, and what for.

Idea: a key is 32 random bytes, shown once; the file keeps its SHA-256 only, so that who reads it can not use the key. A
random key needs no slow hash: nobody guesses it. The file is looked at before each use, so a key that is removed is
worth nothing from the next request on.

Threat: a stolen backup of the data directory; a guesser that measures how long a comparison takes.

Does not: limit how often a key is used (http/guard.py).
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from node.errors import ExitCode, KithError
from node.files import write_atomically

#: What a key may be good for: dialogues and texts, the list of models, vectors of texts, the state of the node.
SCOPES = ("chat", "models", "embeddings", "status")
KEYS_MAX = 256
FILE_BYTES_MAX = 256 * 1024
NAME = re.compile(r"[\w.@-]{1,64}")
PREFIX = "kith-"
#: Of a key's hash, as its id: 128 bits.
ID_LETTERS = 32
#: What is presented is hashed, so it has an end.
PRESENTED_BYTES_MAX = 256


@dataclass(frozen=True)
class ApiKey:
    name: str
    sha256: str  # hex, of the key as it is presented
    scopes: tuple[str, ...]
    created_ms: int  # since 1970

    @property
    def id(self) -> str:
        """Of this key and no later one of the same name."""
        return self.sha256[:ID_LETTERS]


class ApiKeys:
    """The keys of one data directory. Any process may change them; the newest file counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_as: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def all(self) -> tuple[ApiKey, ...]:
        """Raises `KithError` (`keys-damaged`) where the file can not be read as what it should be."""
        try:
            found = self._path.stat()
            at = (found.st_mtime_ns, found.st_size, found.st_ino)
            if at != self._read_as:
                self._keys = _read(self._path)
                self._read_as = at
        except FileNotFoundError:
            self._keys, self._read_as = (), None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise KithError(
                "keys-damaged",
                f"the file of API keys {self._path} can not be used: {error}",
                "Move it away and make new keys with `kith key add`.",
                ExitCode.CANNOT_START,
            ) from error
        return self._keys

    def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, in a time that does not tell how much of it was right. Raises as `all`."""
        raw = presented.encode("utf-8", "replace")
        digest = hashlib.sha256(raw[:PRESENTED_BYTES_MAX]).hexdigest()
        found = None
        for key in self.all():
            if hmac.compare_digest(key.sha256, digest) and len(raw) <= PRESENTED_BYTES_MAX:
                found = key
        return found

    def add(self, name: str, scopes: Iterable[str], now_ms: int) -> str:
        """Make a key; what is returned is nowhere else. Raises `KithError` (`bad-options`, `keys-damaged`)."""
        scopes = tuple(dict.fromkeys(scopes))
        if not NAME.fullmatch(name):
            raise _bad(f"{name!r} is no name for a key", "Use letters, digits and . _ @ -, at most 64.")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise _bad(f"there is no scope {unknown[0]!r}" if unknown else "a key needs a scope", _KNOWN)
        with _locked(self._path):
            keys = self.all()
            if any(key.name == name for key in keys):
                raise _bad(f"there is a key named {name!r} already", "Remove it first: kith key rm NAME.")
            if len(keys) >= KEYS_MAX:
                raise _bad(f"there are {KEYS_MAX} keys already", "Remove some: kith key rm NAME.")
            secret = PREFIX + secrets.token_urlsafe(32)
            digest = hashlib.sha256(secret.encode()).hexdigest()
            self._write([*keys, ApiKey(name, digest, scopes, now_ms)])
        return secret

    def remove(self, name: str) -> None:
        """Raises `KithError` (`key-unknown`, `keys-damaged`)."""
        with _locked(self._path):
            keys = self.all()
            kept = [key for key in keys if key.name != name]
            if len(kept) == len(keys):
                known = ", ".join(key.name for key in keys) or "none"
                raise KithError(
                    "key-unknown", f"there is no key named {name!r}", f"The keys are: {known}.", ExitCode.NOT_FOUND
                )
            self._write(kept)

    def _write(self, keys: Iterable[ApiKey]) -> None:
        write_atomically(self._path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1).encode())
        self._read_as = None


def _read(path: Path) -> tuple[ApiKey, ...]:
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise ValueError("it is too large")
    entries = json.loads(raw)["keys"]
    keys = tuple(_key(entry) for entry in entries[:KEYS_MAX])
    if not all(NAME.fullmatch(key.name) and re.fullmatch("[0-9a-f]{64}", key.sha256) for key in keys):
        raise ValueError("a key in it is none")
    return keys


def _key(entry: dict[str, object]) -> ApiKey:
    scopes = entry["scopes"]
    if not isinstance(scopes, list):
        raise TypeError("scopes are no list")
    created = entry.get("created_ms", 0)
    return ApiKey(str(entry["name"]), str(entry["sha256"]), tuple(map(str, scopes)), int(str(created)))


class _locked:
    """Against two commands that change the keys at once: the later would undo the earlier."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_suffix(".lock")

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


_KNOWN = f"Scopes are: {', '.join(SCOPES)}."


def _bad(message: str, remedy: str) -> KithError:
    return KithError("bad-options", message, remedy, ExitCode.USAGE)
