"""The one module that loads llama-cpp-python: its low-level ctypes binding, with a self-test at start.

llama-cpp-python's structs follow llama.cpp's headers without any check, so a mismatched build reads garbage. The
self-test compares what must hold (version, the size of a struct, defaults that are known) before a model is loaded.
The package's own `__init__` is not run: it imports the high-level API, which costs 0.7 s and 22 MB and is not used.

Facts relied on (llama.cpp 0c1e57098): `llama_decode` returns 0 done, 1 no room in the KV cache, 2 aborted, -1 a bad
batch, below that fatal; with a KV cache split by sequence a batch must be sorted by sequence id; ctypes releases the
interpreter's lock during calls.

Not thread-safe: one thread owns a `Context`. `Model.tokenize` may run in any thread.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from node.engine import kv_state
from node.engine.kv_choice import SPLIT, UNIFIED
from node.errors import KithError

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "0.3.36"

_WARNING = 3  # enum ggml_log_level
_CONTINUED = 5
_REMEDY = "Run `kith doctor`; it names the command that mends the installation."


def _load_binding() -> Any:
    """The module llama_cpp.llama_cpp, without running the package's own start."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise KithError("engine-failed", "llama-cpp-python is not installed", _REMEDY)
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise KithError("engine-failed", f"llama-cpp-python can not be loaded: {error}", _REMEDY) from error


#: llama_token_data: a token as samplers see it.
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

#: Sequences beside those of the slots, where there is one pool of cells: so many ways to go on from what a slot
#: holds are read in one step, and forgotten after it. Each costs rows in the library's buffers.
SPARE_MAX = 15

lib: Any = None
_log_callback: Any = None  # must live as long as the library


def start(warn: Callable[[str], None]) -> None:
    """Load the library, check that the binding fits it, send its warnings to `warn`. Raises `KithError`."""
    global lib, _log_callback
    if lib is not None:
        return
    binding = _load_binding()
    _self_test(binding)
    level_before = 0

    def on_log(level: int, text: bytes | None, _data: object) -> None:
        nonlocal level_before
        if level != _CONTINUED:
            level_before = level
        if level_before >= _WARNING and text:
            warn(text.decode("utf-8", "replace").rstrip("\n"))

    _log_callback = binding.llama_log_callback(on_log)
    binding.llama_log_set(_log_callback, ctypes.c_void_p(0))
    binding.llama_backend_init()
    lib = binding


def _self_test(binding: Any) -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("llama-cpp-python")
    except PackageNotFoundError:
        found = "unknown"
    model, context = binding.llama_model_default_params(), binding.llama_context_default_params()
    chain = binding.llama_sampler_chain_default_params()
    holds = {
        f"version {VERSION}": found == VERSION,
        "a batch of 56 bytes": ctypes.sizeof(binding.llama_batch) == 56,
        "a candidate of 12 bytes": ctypes.sizeof(binding.llama_token_data) == _CANDIDATE.itemsize,
        "defaults of the model": model.use_extra_bufts and not model.vocab_only and not model.no_alloc,
        "defaults of the context": context.n_ctx == 512 and context.n_batch == 2048 and context.n_seq_max == 1,
        "the end of the context's defaults": context.n_samplers == 0 and not context.samplers and context.offload_kqv,
        "defaults of the sampler": isinstance(chain.no_perf, bool),
    }
    broken = [name for name, good in holds.items() if not good]
    if broken:
        message = f"llama-cpp-python {found} does not fit its library: expected {', '.join(broken)}."
        raise KithError("engine-failed", message, f"Install llama-cpp-python=={VERSION}.")


def system_info() -> str:
    info: bytes = lib.llama_print_system_info()
    return info.decode().strip(" |")


class Model:
    """A loaded GGUF file and its vocabulary."""

    def __init__(self, path: Path, gpu_layers: int, plain_kernels: bool = False) -> None:
        """Raises `KithError` (`bad-model`).

        Args:
            plain_kernels: leave out weights repacked for special units (AMX, and with it the repacked formats).
        """
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = not plain_kernels
        self.pointer = lib.llama_model_load_from_file(bytes(path), params)
        if not self.pointer:
            message = f"llama.cpp can not load {path.name}."
            raise KithError("bad-model", message, "The node's log says why; try another GGUF file.")
        if lib.llama_model_has_encoder(self.pointer) or not lib.llama_model_has_decoder(self.pointer):
            message = f"{path.name} is no text generator: it has an encoder."
            raise KithError("bad-model", message, "Use a decoder-only model.")
        self._vocabulary = lib.llama_model_get_vocab(self.pointer)
        self.vocabulary_size: int = lib.llama_vocab_n_tokens(self._vocabulary)
        self.trained_context_tokens: int = lib.llama_model_n_ctx_train(self.pointer)
        self.parameters: int = lib.llama_model_n_params(self.pointer)
        self.tensor_bytes: int = lib.llama_model_size(self.pointer)
        self.embedding_size: int = lib.llama_model_n_embd_out(self.pointer)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._candidates: NDArray[np.void] | None = None

    def tokenize(self, text: str, special: bool, control: bool | None = None) -> list[int]:
        """`special`: with the model's begin token. `control`: control tokens in the text are read as such; by default
        where `special` is set."""
        control = special if control is None else control
        data = text.encode("utf-8", "surrogatepass") if text.isascii() else text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = lib.llama_tokenize(self._vocabulary, data, len(data), tokens, room, special, control)
            if count >= 0:
                return list(tokens[:count])
            assert -count > room
            room = -count

    def piece(self, token: int) -> bytes:
        """The bytes of a token; control tokens have none."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(64)
            count = lib.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, False)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = lib.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, False)
            known = self._pieces[token] = buffer.raw[:count]
        return known

    def pieces(self) -> list[bytes]:
        """Of all tokens, in order; quicker than one by one."""
        buffer = ctypes.create_string_buffer(256)
        to_piece, vocabulary, room = lib.llama_token_to_piece, self._vocabulary, len(buffer)
        found: list[bytes] = []
        for token in range(self.vocabulary_size):
            count = to_piece(vocabulary, token, buffer, room, 0, False)
            found.append(buffer.raw[:count] if count >= 0 else self.piece(token))
        return found

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self._vocabulary, token))
        return known

    def token_text(self, which: str) -> str:
        """The text of the "bos" or "eos" token; empty where the model has none."""
        token = lib.llama_vocab_bos(self._vocabulary) if which == "bos" else lib.llama_vocab_eos(self._vocabulary)
        if token < 0:
            return ""
        text: bytes = lib.llama_vocab_get_text(self._vocabulary, token)
        return text.decode("utf-8", "replace")

    def meta(self, key: str) -> str:
        """A value of the file's header as text; empty where it has none. At most 255 bytes of it."""
        buffer = ctypes.create_string_buffer(256)
        count = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else ""

    def candidates(self, logits: "NDArray[np.float32]") -> "NDArray[np.void]":
        """All tokens with these logits, as samplers take them. One array for all calls: for one thread."""
        if self._candidates is None:
            self._candidates = np.zeros(self.vocabulary_size, dtype=_CANDIDATE)
            self._ids = np.arange(self.vocabulary_size, dtype=np.int32)
        self._candidates["id"] = self._ids
        self._candidates["logit"] = logits
        return self._candidates

    def adds_bos(self) -> bool:
        return bool(lib.llama_vocab_get_add_bos(self._vocabulary))

    def close(self) -> None:
        """After all its contexts; nothing may be called afterwards."""
        lib.llama_model_free(self.pointer)


class Context:
    """The KV cache of `slots` sequences, and the batch that is decoded into it.

    Split: each sequence has cells of its own, and attention reads only those. Unified: one pool of cells, which
    sequences with a common beginning share; every row's attention then runs over all cells in use, masked. A single
    slot is a pool either way.
    """

    def __init__(
        self,
        model: Model,
        context_tokens: int,
        slots: int,
        threads: int,
        batch_tokens: int,
        unified: bool = False,
        flash_attention: bool | None = None,
    ) -> None:
        """Raises `KithError` (`engine-failed`): not enough memory for the cache.

        Args:
            flash_attention: None: as the library likes.
        """
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens * slots
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = unified
        params.swa_full = True  # without it a sliding-window cache forgets what a prefix cache wants
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        params.no_perf = True
        self._model = model
        self._params = params
        self._no_room = f"there is no memory for {slots} slots of {context_tokens:,} tokens"
        self.slots = slots
        self.unified = unified
        self._changed = False
        self._window: int = lib.llama_model_n_swa(model.pointer)
        recurrent = lib.llama_model_is_recurrent(model.pointer) or lib.llama_model_is_hybrid(model.pointer)
        #: Whether a beginning of what a sequence holds can be used without the rest. Recurrent models keep the last
        #: state only; of a sliding window the library may reuse the cells that fell out of it.
        self.divisible = not recurrent and self._window <= 0
        self._open(unified)
        self.context_tokens: int = min(lib.llama_n_ctx_seq(self.pointer), context_tokens)
        self.batch_tokens = batch_tokens
        self._batch = lib.llama_batch_init(batch_tokens, 0, 1)
        self._tokens = np.ctypeslib.as_array(self._batch.token, (batch_tokens,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (batch_tokens,))
        self._outputs = np.ctypeslib.as_array(self._batch.logits, (batch_tokens,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (batch_tokens,))[:] = 1
        # batch.seq_id is an array of pointers; they are pointed at one array of ours, filled at one stroke.
        self._sequences = np.zeros(batch_tokens, dtype=np.int32)
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._library_sequences: list[Any] = [
            ctypes.cast(self._batch.seq_id[i], ctypes.c_void_p).value for i in range(batch_tokens)
        ]
        for i in range(batch_tokens):
            self._batch.seq_id[i] = ctypes.cast(self._sequences.ctypes.data + 4 * i, pointer)
        self._filled = 0

    def _open(self, unified: bool) -> None:
        pooled = self.divisible and (unified or self.slots == 1)
        spare = min(SPARE_MAX, lib.llama_max_parallel_sequences() - self.slots) if pooled else 0
        self._params.kv_unified = unified or pooled
        self._params.n_seq_max = self.slots + spare
        self.pointer = lib.llama_init_from_model(self._model.pointer, self._params)
        if not self.pointer:
            raise KithError("engine-failed", self._no_room, "Use a smaller --ctx or fewer --slots.")
        self._memory = lib.llama_get_memory(self.pointer)
        self.unified = unified
        #: Sequences that no slot has, for ways to go on from what a slot holds; all are empty between two steps.
        self.spare = range(self.slots, self.slots + spare)

    def change(self, unified: bool) -> None:
        """Go on with a cache of this kind, whose sequences are all empty; the old one's memory is given back before.

        Where there is no memory for it, it is of the kind that it was. Raises `KithError` (`engine-failed`): for that
        neither. Only where `divisible`, and with a plain cache of keys and values (`kv_state.layout_of`).
        """
        assert self.divisible
        self._changed = True
        before = self.unified
        lib.llama_free(self.pointer)
        self.pointer = None
        try:
            self._open(unified)
        except KithError:
            self._open(before)

    @property
    def kind(self) -> str:
        """`SPLIT` or `UNIFIED`."""
        return UNIFIED if self.unified else SPLIT

    @property
    def streams(self) -> int:
        """Pools of cells."""
        return 1 if self.unified else self.slots

    @property
    def room(self) -> int:
        """Rows left in this batch."""
        return self.batch_tokens - self._filled

    def clear_batch(self) -> None:
        self._filled = 0

    def add(self, sequence: int, position: int, tokens: Sequence[int], outputs_from: int) -> None:
        """Append rows of one sequence; those from index `outputs_from` on give logits.

        Invariant: sequences come in ascending order, each once a batch.
        """
        begin, end = self._filled, self._filled + len(tokens)
        assert end <= self.batch_tokens
        assert begin == 0 or self._sequences[begin - 1] < sequence
        self._tokens[begin:end] = tokens
        self._positions[begin:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequences[begin:end] = sequence
        self._outputs[begin:end] = 0
        self._outputs[begin + min(outputs_from, len(tokens)) : end] = 1
        self._filled = end

    def decode(self) -> int:
        """llama.cpp's return code; see the module's header."""
        self._batch.n_tokens = self._filled
        code: int = lib.llama_decode(self.pointer, self._batch)
        return code

    def logits(self) -> "NDArray[np.float32]":
        """One row for every output row of the batch, in its order. Valid until the next decode."""
        count = int(self._outputs[: self._filled].sum())
        if count == 0:  # the library's pointer is null then
            return np.empty((0, self._model.vocabulary_size), dtype=np.float32)
        rows = lib.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(rows, (count, self._model.vocabulary_size))

    def cut(self, sequence: int, length: int) -> bool:
        """Forget what a sequence holds from position `length` on. False: this model's memory can not be cut there;
        the sequence is then empty."""
        done = lib.llama_memory_seq_rm(self._memory, sequence, length, -1)
        if done and length and self._window > 0:
            done = lib.llama_memory_seq_pos_min(self._memory, sequence) <= max(0, length - self._window)
        if not done:
            lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return bool(done)

    def share(self, source: int, sequence: int, length: int) -> None:
        """The empty `sequence` gets the first `length` cells of `source` as well. In one pool only; copies nothing."""
        assert self.streams == 1
        lib.llama_memory_seq_cp(self._memory, source, sequence, 0, length)

    def state(self, sequence: int) -> bytearray:
        """All that a sequence holds, in the library's own format; empty where it can not be had."""
        size: int = lib.llama_state_seq_get_size(self.pointer, sequence)
        state = bytearray(size)
        got = lib.llama_state_seq_get_data(self.pointer, (ctypes.c_uint8 * size).from_buffer(state), size, sequence)
        return state if got == size else bytearray()

    def restore(self, sequence: int, state: bytearray) -> bool:
        """Replace what a sequence holds. False: it did not work, and the sequence is empty.

        The state must be one of this context, before or after any change of its kind, or checked by `kv_state`: the
        library trusts much of what it reads.
        """
        if self._changed:
            state = kv_state.for_streams(state, self.streams)
        source = (ctypes.c_uint8 * len(state)).from_buffer(state)
        if lib.llama_state_seq_set_data(self.pointer, source, len(state), sequence) == len(state):
            return True
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def close(self) -> None:
        """Give the memory back; nothing may be called afterwards."""
        for i, address in enumerate(self._library_sequences):  # the library frees what it made
            self._batch.seq_id[i] = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.pointer)


class Chain:
    """A chain of llama.cpp's samplers; it owns what is added."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pointer = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        assert self._pointer

    def _add(self, sampler: Any) -> None:
        assert sampler
        lib.llama_sampler_chain_add(self._pointer, sampler)

    def add_logit_bias(self, bias: Mapping[int, float]) -> None:
        entries = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(*entry) for entry in bias.items()))
        self._add(lib.llama_sampler_init_logit_bias(self._model.vocabulary_size, len(bias), entries))

    def add_penalties(self, last_tokens: int, repeat: float, frequency: float, presence: float) -> None:
        size = self._model.vocabulary_size
        self._add(lib.llama_sampler_init_penalties(size, last_tokens, repeat, frequency, presence))

    def add_greedy(self) -> None:
        self._add(lib.llama_sampler_init_greedy())

    def add_top_k(self, count: int) -> None:
        self._add(lib.llama_sampler_init_top_k(count))

    def add_top_p(self, probability: float) -> None:
        self._add(lib.llama_sampler_init_top_p(probability, 1))

    def add_min_p(self, probability: float) -> None:
        self._add(lib.llama_sampler_init_min_p(probability, 1))

    def add_temperature(self, temperature: float) -> None:
        self._add(lib.llama_sampler_init_temp(temperature))

    def sample(self, logits: "NDArray[np.float32]", seed: int | None) -> int:
        """A token by these logits of all tokens. `accept` makes the chain remember it.

        Args:
            seed: of this one draw, 32 bits; None where the chain ends in a greedy choice.
        """
        rows = self._model.candidates(logits)
        data = ctypes.cast(rows.ctypes.data, ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=data, size=len(rows), selected=-1, sorted=False)
        lib.llama_sampler_apply(self._pointer, ctypes.byref(array))
        if seed is not None:
            draw = lib.llama_sampler_init_dist(seed)
            lib.llama_sampler_apply(draw, ctypes.byref(array))
            lib.llama_sampler_free(draw)
        assert 0 <= array.selected < array.size
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        if self._pointer:
            lib.llama_sampler_free(self._pointer)
            self._pointer = None
