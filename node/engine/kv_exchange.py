"""Export and import of cached prefixes: the requests around `kv_state`, and the thread that may answer them.

Packing reads the KV cache, so it is done by the loop's thread between two steps (some milliseconds a megabyte at most,
and everybody waits). What comes in is checked by the caller's thread; only the finished state is handed over, and lies
among the spilled prefixes until a prompt wants it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mesh.wire import engine_pb2
from node.engine import frames, kv_state, llama
from node.engine.backend import Request, broke, unsupported
from node.engine.kv_cache import KvCache
from node.engine.llama_loop import LlamaLoop
from node.engine.radix import common_prefix
from node.errors import ExitCode, KithError

#: What a message needs beside the state.
_FRAME_REST_BYTES = 4 << 20


class KvExchange:
    """`name` is empty where this engine can not do it: its memory is of another kind, or there is no room to spill."""

    def __init__(self, context: llama.Context, model: Sequence[Path], state: bytearray, spill_bytes: int) -> None:
        """`model`: its files; `state`: one of this context, with some tokens."""
        self._context_tokens = context.context_tokens
        self._context = context
        self._spill_bytes = spill_bytes
        self.name = ""
        if not (spill_bytes and context.divisible):
            return
        try:
            self._layout = kv_state.layout_of(state)
        except kv_state.NotPlainError:
            return
        self.name = self._layout.name(kv_state.model_fingerprint(model), llama.VERSION)

    @property
    def token_bytes(self) -> int:
        """What a token takes in a sequence's state; only where there is a `name`."""
        return self._layout.state_bytes_per_token

    def send(self, request: Request, loop: LlamaLoop) -> None:
        """Answer an export. Raises `KithError`."""
        self._check_ability()
        tokens = list(request.command.export_kv.tokens)

        def pack(cache: KvCache) -> None:
            reply = engine_pb2.ExportKvReply()
            if (found := cache.state_of(tokens)) is not None:
                held, state = found
                fit = (frames.FRAME_BYTES_MAX - _FRAME_REST_BYTES) // self._layout.bytes_per_token
                common = held[: min(common_prefix(held, tokens), fit)]
                if common:
                    reply.tokens = len(common)
                    reply.state = kv_state.pack(state, self._layout, self.name, common)
            request.answer(engine_pb2.EngineEvent(exported_kv=reply))

        loop.call(_safely(request, pack))

    def receive(self, request: Request, loop: LlamaLoop) -> None:
        """Answer an import. Raises `KithError`."""
        self._check_ability()
        command = request.command.import_kv
        tokens = list(command.tokens)
        if len(tokens) > self._context_tokens:
            raise KithError("bad-request", f"a KV state of {len(tokens):,} tokens does not fit here", "Send less.")
        state = kv_state.unpack(command.state, self._layout, self.name, tokens, self._context.streams)
        if len(state) > self._spill_bytes:
            raise KithError("bad-request", "the KV state is larger than all the room for such", "Send less.")

        def put(cache: KvCache) -> None:
            cache.spill.put(tokens, state)
            request.answer(engine_pb2.EngineEvent(imported_kv=engine_pb2.ImportKvReply()))

        loop.call(_safely(request, put))

    def _check_ability(self) -> None:
        if not self.name:
            raise unsupported("llama", "exchange KV with this model")


def _safely(request: Request, what: Callable[[KvCache], None]) -> Callable[[KvCache], None]:
    """An error in the loop's thread would end the engine; this one is the request's."""

    def call(cache: KvCache) -> None:
        try:
            what(cache)
        except Exception as error:
            broke(error)
            message = f"the KV could not be moved ({type(error).__name__})"
            request.fail(KithError("engine-failed", message, "The prompt can be read again.", ExitCode.UNAVAILABLE))

    return call
