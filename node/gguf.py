"""The header of a GGUF file, read in pure Python with bounds, before the C++ loader sees the file.

Every length is checked against the file's size before it is used, every tensor must lie inside the file, sums can not
overflow (Python's integers do not). Threat: model files come from strangers, and loaders have trusted their lengths
before (CVE-2026-7482, CVE-2026-27940). The file is read, not mapped: a file cut short meanwhile is an error, not a
SIGBUS in the daemon.

A large model may be split in several files that lie side by side (NAME-00001-of-00003.gguf). The first names them all,
and the loader opens them by their names; so all are read here as well.

Not guaranteed: that the tensors make a working model; only llama.cpp can tell, in the engine's process.

Source: the GGUF specification in ggml/docs/gguf.md; block sizes from ggml's type traits; llama.cpp's
`enum llama_pooling_type`, `llama_split_path` and keys of split models.
"""

import hashlib
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from node.errors import ExitCode, KithError

#: Tokens of a slot where the user gives no --ctx and the model allows it.
CONTEXT_TOKENS_DEFAULT = 4096
#: Tokens of one text that a vector is made of, at most; it has to fit in one batch. Threat: a batch needs half a
#: megabyte a token in buffers.
TEXT_TOKENS_MAX = 512

#: How the vectors of a text's tokens become one: `{architecture}.pooling_type`.
POOLING_UNNAMED, POOLING_NONE, POOLING_MEAN, POOLING_FIRST, POOLING_LAST, POOLING_RANK = range(-1, 5)

KEYS_MAX = 65_536
TENSORS_MAX = 65_536
KEY_BYTES_MAX = 65_536
STRING_BYTES_MAX = 16 * 1024 * 1024  # a chat template fits many times over
ARRAY_STRINGS_MAX = 4_000_000  # in all arrays of a file: a vocabulary of four million tokens, read in seconds
ARRAY_KEPT_MAX = 4096  # elements of a number array that are kept; longer ones are skipped
KEPT_BYTES_MAX = 64 * 1024 * 1024  # of all keys and values together: what a header costs in memory
DIMENSIONS_MAX = 4
#: Elements of one tensor: with any type of at most 64 bits its size in bytes stays far inside 64-bit arithmetic, which
#: the loader uses. A check of sizes alone says nothing about types that are not known here.
ELEMENTS_MAX = 1 << 50
ALIGNMENT_MAX = 1 << 20

#: Files of one model. Threat: a header that announces more of them than a process may have open.
PARTS_MAX = 256

#: Memory that an engine process needs beside weights and cache: interpreter, libraries, compute buffers.
OVERHEAD_BYTES = 128 * 1024 * 1024

#: The bounds on the same, for the limit on a process that runs wild.
LIBRARIES_BYTES = 2 << 30
THREAD_BYTES = 64 << 20

_REMEDY = "Give the path of a complete GGUF file; `kith model pull` fetches the default model."

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9

#: Tensor type → (name, elements of a block, bytes of a block).
_TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

#: In the names of tensors that hold all experts of a layer, of which a token uses some.
_EXPERTS = "_exps."

#: general.file_type → what people call it.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself. Empty strings and zeros: it does not say."""

    architecture: str
    name: str
    parameters: int  # sum over all tensors
    quantization: str
    context_tokens: int  # trained
    chat_template: str
    licence: str
    tensor_bytes: int
    file_bytes: int
    tensors: int
    vocabulary_size: int
    kv_bytes_per_token: int  # at 16 bits a value; 0: unknown
    kind: str = ""  # "model", "adapter", …
    adapter: str = ""  # "lora"
    pooling: int = POOLING_UNNAMED
    causal: bool = True  # each token attends to those before it only, as writing needs
    active_share: float = 1.0  # of the weights' bytes: what one token uses; less in a mixture of experts
    paths: tuple[Path, ...] = ()  # of the files that the model is in, the first one first

    @property
    def embeds_only(self) -> bool:
        """Made for vectors of texts: what it would write is noise."""
        return self.pooling not in (POOLING_UNNAMED, POOLING_NONE) or not self.causal

    def vector_pooling(self) -> int:
        """How every engine pools a text's vectors: as the header names it; by the mean where it names nothing.

        Raises `KithError` (`bad-model`) for a model whose result is no vector of a text.
        """
        if self.pooling in (POOLING_UNNAMED, POOLING_NONE):
            return POOLING_MEAN
        if self.pooling in (POOLING_MEAN, POOLING_FIRST, POOLING_LAST):
            return self.pooling
        what = "ranks texts" if self.pooling == POOLING_RANK else f"has the unknown pooling type {self.pooling}"
        remedy = "Take one that writes or one that embeds; `kith model advise` names some."
        raise KithError("bad-model", f"the model {what}, which no engine here can use", remedy, ExitCode.BAD_INPUT)


def read_header(path: Path) -> GgufHeader:
    """Of a model in several files: what all of them say, from the path of the first one.

    Raises `KithError` (`bad-model`) with the reason.
    """
    first = _read(path)
    count, number = _whole(first.values, "split.count"), _whole(first.values, "split.no")
    if count <= 1:
        return _header([first])
    if count > PARTS_MAX:
        raise _bad(path, f"is one of {count} files, and a model has {PARTS_MAX} at most")
    if number:
        remedy = f"Give the path of the first, which ends in -00001-of-{count:05}.gguf."
        raise _bad(path, f"is part {number + 1} of {count} of a model", remedy)
    paths = _parts(path, count)
    if not paths:
        remedy = f"Call them by their names again, which end in -00001-of-{count:05}.gguf and so on."
        raise _bad(path, f"is one of {count} files of a model, which are found by their names", remedy)
    files = [first, *(_read(other) for other in paths[1:])]
    for at, file in enumerate(files):
        if (number := _whole(file.values, "split.no")) != at:
            raise _bad(file.path, f"is part {number + 1} of {count} of a model, and is called part {at + 1}")
    return _header(files)


def _parts(path: Path, count: int) -> list[Path]:
    """The files of a model, by the names that the loader looks for; empty where this is no name of a first one."""
    ending = f"-00001-of-{count:05}.gguf"
    if not path.name.endswith(ending):
        return []
    name = path.name.removesuffix(ending)
    return [path.with_name(f"{name}-{at:05}-of-{count:05}.gguf") for at in range(1, count + 1)]


def _read(path: Path) -> "_File":
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _Reader(file, path, os.fstat(file.fileno()).st_size).read()
    except FileNotFoundError as error:
        raise _bad(path, "does not exist") from error
    except IsADirectoryError as error:
        raise _bad(path, "is a folder, not a file") from error
    except OSError as error:
        raise _bad(path, f"can not be read: {error.strerror}") from error


def check_sha256(path: Path, expected: str) -> None:
    """Read the whole file. Raises `KithError` (`bad-model`) where it is not the one that was pinned (hex digits)."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _bad(path, f"can not be read: {error.strerror}") from error
    if found != expected.lower():
        raise _bad(path, f"has the SHA-256 {found}, not the one of the setting model_sha256")


def check_memory(header: GgufHeader, context_tokens: int, slots: int, available_bytes: int | None = None) -> None:
    """Raises `KithError` (`bad-model`) when weights and caches do not fit in the memory that is free now.

    `context_tokens` is per slot; 0: the default. Without a figure for free memory (not Linux) nothing is checked.
    """
    available = memory_available_bytes() if available_bytes is None else available_bytes
    if available is None:
        return
    context = slot_tokens(header, context_tokens)
    needed = needed_bytes(header, context_tokens, slots)
    cache = needed - header.tensor_bytes - OVERHEAD_BYTES
    if needed > available:
        message = (
            f"The model needs about {_gb(needed)} of memory ({_gb(header.tensor_bytes)} of weights, {_gb(cache)} for "
            f"{max(1, slots)} × {context:,} tokens of context), and {_gb(available)} are available."
        )
        raise KithError("bad-model", message, "Use a smaller model, --ctx or --slots.", ExitCode.BAD_INPUT)


def slot_tokens(header: GgufHeader, context_tokens: int) -> int:
    """Context of a slot; `context_tokens` 0: the default. Of a model made for vectors: the longest text."""
    most = TEXT_TOKENS_MAX if header.embeds_only else CONTEXT_TOKENS_DEFAULT
    default = min(header.context_tokens or most, most)
    return min(context_tokens or default, default) if header.embeds_only else context_tokens or default


def needed_bytes(header: GgufHeader, context_tokens: int, slots: int) -> int:
    """Memory that weights, caches and libraries take, about."""
    cache = header.kv_bytes_per_token * slot_tokens(header, context_tokens) * max(1, slots)
    return header.tensor_bytes + cache + OVERHEAD_BYTES


def memory_limit_bytes(header: GgufHeader, context_tokens: int, slots: int, cores: int) -> int:
    """Private memory that an engine process with this model may take at most, bytes; 0: it can not be told.

    Weights count twice, because they are mapped and a copy may be repacked for the CPU's special units; every thread of
    the libraries has buffers of its own. Meant to end a process that runs wild, not to measure one that works.
    """
    if not header.kv_bytes_per_token:
        return 0
    cache = header.kv_bytes_per_token * slot_tokens(header, context_tokens) * max(1, slots)
    return 2 * header.tensor_bytes + 2 * cache + LIBRARIES_BYTES + cores * THREAD_BYTES


def memory_available_bytes() -> int | None:
    """MemAvailable of Linux; None elsewhere."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _bad(path: Path, reason: str, remedy: str = _REMEDY) -> KithError:
    return KithError("bad-model", f"the model file {path} {reason}", remedy, ExitCode.BAD_INPUT)


@dataclass(frozen=True)
class _File:
    """What one file holds."""

    path: Path
    values: dict[str, Any]
    tensors: int
    parameters: int
    bytes_of: Counter[str]  # tensors, by the name of their type
    expert_bytes: int  # of them: tensors that hold all experts of a layer
    file_bytes: int


def _header(files: list[_File]) -> GgufHeader:
    """Of a model in these files, the first of which says what it is."""
    values = files[0].values
    architecture, tensors = _text(values, "general.architecture"), sum(file.tensors for file in files)
    if not architecture or not tensors:
        raise _bad(files[0].path, "is damaged: it names no architecture or holds no tensors")
    bytes_of: Counter[str] = Counter()
    for file in files:
        bytes_of.update(file.bytes_of)
    return GgufHeader(
        architecture=architecture,
        name=_text(values, "general.name"),
        parameters=sum(file.parameters for file in files),
        quantization=_FILE_TYPES.get(_whole(values, "general.file_type", -1)) or bytes_of.most_common(1)[0][0],
        context_tokens=_whole(values, f"{architecture}.context_length"),
        chat_template=_text(values, "tokenizer.chat_template"),
        licence=_text(values, "general.license"),
        tensor_bytes=bytes_of.total(),
        file_bytes=sum(file.file_bytes for file in files),
        tensors=tensors,
        vocabulary_size=_length(values, "tokenizer.ggml.tokens"),
        kv_bytes_per_token=_kv_bytes_per_token(values, architecture),
        kind=_text(values, "general.type"),
        adapter=_text(values, "adapter.type"),
        pooling=_whole(values, f"{architecture}.pooling_type", POOLING_UNNAMED),
        causal=values.get(f"{architecture}.attention.causal", True) is not False,
        active_share=_active_share(values, architecture, sum(file.expert_bytes for file in files), bytes_of.total()),
        paths=tuple(file.path for file in files),
    )


class _Reader:
    """A cursor that never goes past the end of the file."""

    def __init__(self, file: BinaryIO, path: Path, file_bytes: int) -> None:
        self._file = file
        self._path = path
        self._file_bytes = file_bytes
        self._at = 0
        self._strings_left = ARRAY_STRINGS_MAX
        self._bytes_left = KEPT_BYTES_MAX

    def read(self) -> _File:
        if self._file_bytes == 0:
            raise _bad(self._path, "is empty")
        magic = self._file.read(4)
        self._at = len(magic)
        if magic != b"GGUF":
            raise _bad(self._path, "is not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            kind = "is a big-endian GGUF file" if swapped in (2, 3) else f"has GGUF version {version}, not 2 or 3"
            raise _bad(self._path, kind)
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        if tensor_count > TENSORS_MAX or key_count > KEYS_MAX:
            raise self._damaged(f"it announces {tensor_count} tensors and {key_count} keys")
        return self._with_tensors(self._values(key_count), tensor_count)

    def _values(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._string(KEY_BYTES_MAX)
            if key in values:
                raise self._damaged("a key comes twice")
            values[key] = self._value(self._number("<I"))
        return values

    def _with_tensors(self, values: dict[str, Any], count: int) -> _File:
        alignment = values.get("general.alignment", 32)
        good = isinstance(alignment, int) and 0 < alignment <= ALIGNMENT_MAX and alignment & (alignment - 1) == 0
        if not good:
            raise self._damaged("its alignment is not a power of two")
        parameters = furthest = expert_bytes = 0
        bytes_of: Counter[str] = Counter()
        for _ in range(count):
            name, elements, size, kind, offset = self._tensor()
            if offset % alignment:
                raise self._damaged("a tensor is not aligned")
            parameters += elements
            bytes_of[kind] += size
            expert_bytes += size if _EXPERTS in name else 0
            furthest = max(furthest, offset + size)
        data_at = -(-self._at // alignment) * alignment
        if data_at + furthest > self._file_bytes:
            missing = data_at + furthest - self._file_bytes
            raise _bad(self._path, f"is cut short: {missing:,} bytes of its tensors are missing")
        return _File(self._path, values, count, parameters, bytes_of, expert_bytes, self._file_bytes)

    def _tensor(self) -> tuple[str, int, int, str, int]:
        """Name, elements, bytes, type name and offset of the next tensor."""
        called = self._string(KEY_BYTES_MAX)
        dimensions = self._number("<I")
        if not 0 < dimensions <= DIMENSIONS_MAX:
            raise self._damaged(f"a tensor has {dimensions} dimensions")
        elements = 1
        row = 0
        for i in range(dimensions):
            length = self._number("<Q")
            row = length if i == 0 else row
            # Each by itself too: where one dimension is 0, the product hides the others.
            elements *= length
            if max(length, elements) > ELEMENTS_MAX:
                raise self._damaged("a tensor's dimensions are absurd")
        kind, offset = self._number("<I"), self._number("<Q")
        name, block_elements, block_bytes = _TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))  # unknown: llama.cpp judges
        if row % block_elements:
            raise self._damaged("a tensor's row is no multiple of its block")
        return called, elements, elements // block_elements * block_bytes, name, offset

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string(STRING_BYTES_MAX)
        if kind == _ARRAY:
            return self._array()
        raise self._damaged(f"a value has the unknown type {kind}")

    def _array(self) -> "list[Any] | _Skipped":
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            if count > self._strings_left:
                raise self._damaged(f"an array announces {count} strings")
            self._strings_left -= count
            for _ in range(count):
                self._skip(self._number("<Q"))
            return _Skipped(count)
        if kind not in _NUMBERS:
            raise self._damaged(f"an array has elements of the unknown type {kind}")
        layout = struct.Struct(_NUMBERS[kind])
        if count <= ARRAY_KEPT_MAX:
            return [value for (value,) in layout.iter_unpack(self._bytes(count * layout.size))]
        self._skip(count * layout.size)
        return _Skipped(count)

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _string(self, bytes_max: int) -> str:
        length = self._number("<Q")
        if length > bytes_max:
            raise self._damaged(f"a string announces {length} bytes")
        return self._bytes(length).decode("utf-8", "replace")

    def _bytes(self, count: int) -> bytes:
        self._advance(count)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise self._damaged(f"its keys and values are larger than {KEPT_BYTES_MAX} bytes")
        block = self._file.read(count)
        if len(block) != count:
            raise _bad(self._path, "ends inside its header: it is cut short")
        return block

    def _skip(self, count: int) -> None:
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def _advance(self, count: int) -> None:
        self._at += count
        if self._at > self._file_bytes:
            raise _bad(self._path, "ends inside its header: it is cut short")

    def _damaged(self, reason: str) -> KithError:
        return _bad(self._path, f"is damaged: {reason}")


@dataclass(frozen=True)
class _Skipped:
    """An array whose elements are of no use here."""

    count: int


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _whole(values: dict[str, Any], key: str, default: int = 0) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _length(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, _Skipped):
        return value.count
    return len(value) if isinstance(value, list) else 0


def _active_share(values: dict[str, Any], architecture: str, expert_bytes: int, tensor_bytes: int) -> float:
    experts = _whole(values, f"{architecture}.expert_count")
    used = _whole(values, f"{architecture}.expert_used_count")
    if not 0 < used <= experts or not tensor_bytes:
        return 1.0
    return 1.0 - expert_bytes / tensor_bytes * (1.0 - used / experts)


def _kv_bytes_per_token(values: dict[str, Any], architecture: str) -> int:
    """Keys and values of one token over all layers, 2 bytes each. Layers may differ in their number of KV heads."""
    layers = min(_whole(values, f"{architecture}.block_count"), 100_000)
    heads = _whole(values, f"{architecture}.attention.head_count")
    width = _whole(values, f"{architecture}.embedding_length")
    if layers <= 0 or heads <= 0 or width <= 0:
        return 0
    key = _whole(values, f"{architecture}.attention.key_length", width // heads)
    value = _whole(values, f"{architecture}.attention.value_length", width // heads)
    per_layer = values.get(f"{architecture}.attention.head_count_kv", heads)
    if isinstance(per_layer, list):
        kv_heads = sum(count for count in per_layer[:layers] if isinstance(count, int) and count > 0)
    else:
        kv_heads = layers * per_layer if isinstance(per_layer, int) else layers * heads
    return max(0, kv_heads * (key + value) * 2)
