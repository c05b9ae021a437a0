"""KV of a prompt's beginning on its way to another engine: packed with what it fits to, and checked before C sees it.

llama.cpp reads a sequence's state with few checks: counts and positions in it steer memory writes. So what comes from
elsewhere is not handed on as it came. The floats are taken out of it, after its length and every count in it were
compared with what this engine's own state looks like, and a state is written anew around them.

A packed state is: magic, the layout's name, the count and SHA-256 of the tokens, the SHA-256 of the payload, and the
payload: for each layer its keys, then for each layer its values, nothing else. The layout's name holds the model's
fingerprint, the library's version and the types and sizes of the cache; engines exchange KV where it is the same.

Not guaranteed: that the floats are right. A hash shows an accident, not a lie: a peer that wants to can send the KV of
other tokens. So take KV only from peers whose answers you would take.

Source of the format: llama_kv_cache::state_write of llama.cpp 0c1e57098 (a cache without multi-dimensional positions).
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from node.errors import ExitCode, KithError

MAGIC = b"KITHKV1\0"
_HEAD = struct.Struct("<8s64sI32s32s")
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])

#: Bytes of each file of a model that its fingerprint reads: this many blocks, evenly spread, of this size.
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


class NotPlainError(ValueError):
    """This is no state of a plain cache of keys and values."""


@dataclass(frozen=True)
class Layout:
    """What the states of one context look like, whatever they hold."""

    magic: int
    transposed: bool  # values by channel and not by cell
    keys: tuple[tuple[int, int], ...]  # type and bytes a cell, of each layer
    values: tuple[tuple[int, int, int], ...]  # type, bytes an element, elements a cell (not transposed: bytes, 1)

    @property
    def bytes_per_token(self) -> int:
        return sum(size for _, size in self.keys) + sum(size * count for _, size, count in self.values)

    @property
    def state_bytes_per_token(self) -> int:
        """What a token takes in a sequence's state: its place as well. The rest of a state is a few bytes a layer."""
        return self.bytes_per_token + _CELL.itemsize

    def name(self, model: str, version: str) -> str:
        """Hex digits: equal for engines that can exchange KV."""
        what = f"kith-kv-1\0{model}\0{version}\0{self.magic}\0{self.transposed}\0{self.keys}\0{self.values}"
        return hashlib.sha256(what.encode()).hexdigest()


class _Cursor:
    def __init__(self, state: bytes | bytearray | memoryview) -> None:
        self._state = memoryview(state)
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self._state) - self.at:
            raise NotPlainError("it ends too early")
        self.at += count
        return self._state[self.at - count : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    @property
    def left(self) -> int:
        return len(self._state) - self.at


@dataclass(frozen=True)
class _Parts:
    layout: Layout
    positions: "np.ndarray[tuple[int], np.dtype[np.int32]]"
    keys: list[memoryview]
    values: list[memoryview]


def _read(state: bytes | bytearray) -> _Parts:
    """Take a state of our own context apart. Raises `NotPlainError`."""
    cursor = _Cursor(state)
    magic, _ = cursor.number("<I"), cursor.number("<i")
    cells = 0
    for _ in range(cursor.number("<I")):
        cells = cursor.number("<I")
        if cells:
            break
    if not cells:
        raise NotPlainError("it is empty")
    meta = np.frombuffer(cursor.take(cells * _CELL.itemsize), _CELL)
    if not (meta["sequences"] == 1).all():
        raise NotPlainError("its cells are not of one sequence")
    transposed, layers = cursor.number("<I"), cursor.number("<I")
    if transposed > 1 or not 0 < layers < 4096:
        raise NotPlainError("it has no layers")
    key_forms, keys, value_forms, values = [], [], [], []
    for _ in range(layers):
        key_forms.append((cursor.number("<i"), size := cursor.number("<Q")))
        keys.append(cursor.take(cells * size))
    for _ in range(layers):
        kind = cursor.number("<i")
        size, count = (cursor.number("<I"), cursor.number("<I")) if transposed else (cursor.number("<Q"), 1)
        value_forms.append((kind, size, count))
        values.append(cursor.take(cells * size * count))
    if cursor.left % 4 or any(cursor.take(cursor.left)):  # empty streams after it
        raise NotPlainError("it goes on")
    layout = Layout(magic, bool(transposed), tuple(key_forms), tuple(value_forms))
    return _Parts(layout, meta["position"], keys, values)


def layout_of(state: bytes | bytearray) -> Layout:
    """Raises `NotPlainError`: the model's memory is of another kind, and can not be moved."""
    parts = _read(state)
    if sorted(parts.positions.tolist()) != list(range(len(parts.positions))):
        raise NotPlainError("its positions have gaps")
    return parts.layout


def pack(state: bytes | bytearray, layout: Layout, name: str, tokens: Sequence[int]) -> bytes:
    """The first `tokens` of a state that holds at least these."""
    parts = _read(state)
    assert parts.layout == layout
    order = np.argsort(parts.positions, kind="stable")[: len(tokens)]
    assert parts.positions[order].tolist() == list(range(len(tokens)))
    cells = len(parts.positions)
    blocks = []
    for data, (_, size) in zip(parts.keys, layout.keys, strict=True):
        blocks.append(np.frombuffer(data, np.uint8).reshape(cells, size)[order].tobytes())
    for data, (_, size, count) in zip(parts.values, layout.values, strict=True):
        if layout.transposed:
            blocks.append(np.frombuffer(data, np.uint8).reshape(count, cells, size)[:, order].tobytes())
        else:
            blocks.append(np.frombuffer(data, np.uint8).reshape(cells, size)[order].tobytes())
    payload = b"".join(blocks)
    head = _HEAD.pack(MAGIC, name.encode(), len(tokens), _tokens_sha256(tokens), hashlib.sha256(payload).digest())
    return head + payload


def unpack(packed: bytes, layout: Layout, name: str, tokens: Sequence[int], streams: int) -> bytearray:
    """A state for a context with this layout and so many streams. Raises `KithError` (`bad-request`)."""
    if len(packed) < _HEAD.size:
        raise _refused("it is cut short")
    magic, theirs, count, tokens_sha256, payload_sha256 = _HEAD.unpack_from(packed)
    if magic != MAGIC:
        raise _refused("it is of another kind")
    if theirs != name.encode():
        raise _refused("it is of another model, build or cache type")
    if not 0 < count == len(tokens) or tokens_sha256 != _tokens_sha256(tokens):
        raise _refused("it is of other tokens")
    if len(packed) != _HEAD.size + count * layout.bytes_per_token:
        raise _refused("its length does not fit")
    payload = memoryview(packed)[_HEAD.size :]
    if hashlib.sha256(payload).digest() != payload_sha256:
        raise _refused("its hash is wrong")
    cells = np.zeros(count, _CELL)
    cells["position"] = np.arange(count)
    cells["sequences"] = 1
    out = bytearray(struct.pack("<IiII", layout.magic, 0, streams, count) + cells.tobytes())
    out += struct.pack("<II", layout.transposed, len(layout.keys))
    at = 0
    for kind, size in layout.keys:
        out += struct.pack("<iQ", kind, size)
        out += payload[at : at + count * size]
        at += count * size
    for kind, size, elements in layout.values:
        out += struct.pack("<iII", kind, size, elements) if layout.transposed else struct.pack("<iQ", kind, size)
        out += payload[at : at + count * size * elements]
        at += count * size * elements
    out += bytes(4 * (streams - 1))
    return out


def for_streams(state: bytearray, streams: int) -> bytearray:
    """A state of our own, of a plain cache with any number of streams, as one with this number writes it: one where
    sequences share a pool of cells, else one for each. The state itself where it is so already."""
    cursor = _Cursor(state)
    cursor.take(struct.calcsize("<Ii"))
    own = cursor.number("<I")
    if own == streams:
        return state
    head = state[: struct.calcsize("<Ii")]
    for before in range(own):
        if cells := cursor.number("<I"):
            held = memoryview(state)[cursor.at : len(state) - 4 * (own - before - 1)]
            return head + struct.pack("<II", streams, cells) + held + bytes(4 * (streams - 1))
    return head + struct.pack("<I", streams) + bytes(4 * streams)


def model_fingerprint(paths: Sequence[Path]) -> str:
    """Tells models apart without reading their files whole: of each its size, beginning and evenly spread blocks. Hex
    digits."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(number * size // _BLOCKS)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _tokens_sha256(tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(tokens, "<u4").tobytes()).digest()


def _refused(why: str) -> KithError:
    return KithError("bad-request", f"the KV state is refused: {why}", "", ExitCode.BAD_INPUT)
