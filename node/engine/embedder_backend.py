"""The `llama` back end of models that are made for vectors: no cache of a dialogue, no logits, nothing is written.

Many of them are encoders (BERT), which have neither memory nor an output for a next token; others would write noise.
The worker thread tokenizes and checks a request; one thread computes, a batch a step.

Not guaranteed: the prefix before a text that some models want ("search_query: "): whoever asks writes it.
"""

import threading
import time
from collections.abc import Callable

from mesh.wire import engine_pb2
from node import gguf
from node.abilities import EMBEDDER_ABILITIES
from node.engine import llama
from node.engine.backend import Outbox, Request, embeds_only, queue_full, unsupported
from node.engine.embed_turns import EmbedTurns
from node.engine.embedding import EmbedCalibration, Embedder, VectorWork, embed_work
from node.engine.llama_opening import WARM_UP_TOKENS, opened, start_loop, warn
from node.errors import KithError

#: Requests that may wait. Threat: a queue without end, where every answer comes too late.
QUEUE_MAX = 128

_WRITING = {"generate": "write", "score": "score texts", "export_kv": "exchange KV", "import_kv": "exchange KV"}


class EmbedderBackend:
    """Implements `Backend`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._model: llama.Model
        self._embedder: Embedder
        self._loop = EmbedLoop(outbox.flush)

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        file = opened(command)
        self._model = file.model
        context_tokens = gguf.slot_tokens(file.header, command.context_tokens)
        self._embedder = Embedder(file.model, context_tokens, file.threads, file.header.vector_pooling())
        if command.adapters:
            warn(f"{file.path.name} makes vectors: the LoRA adapters are for models that write, and left out")
        _warm_up(self._embedder)
        start_loop(self._loop.run)
        loaded = file.loaded(context_tokens, max(1, command.slots))
        loaded.abilities.extend(EMBEDDER_ABILITIES)
        return loaded

    def submit(self, request: Request) -> None:
        command = request.command
        kind = str(command.WhichOneof("command"))
        if kind in _WRITING or (kind == "count_tokens" and command.count_tokens.HasField("prompt_of")):
            raise embeds_only(_WRITING.get(kind, "read a dialogue"))
        if kind == "embed":
            self._loop.add(embed_work(request, self._model, self._embedder))
        elif kind == "calibrate":
            self._loop.add(EmbedCalibration(request, self._model, self._embedder))
        elif kind == "count_tokens":
            counts = [len(self._model.tokenize(text, special=False)) for text in command.count_tokens.texts]
            request.answer(engine_pb2.EngineEvent(counts=engine_pb2.CountTokensReply(counts=counts)))
        else:
            raise unsupported("llama", f"do {kind}")

    def wake(self) -> None:
        """A request that was cancelled is seen when its turn comes, which is soon: each step is one batch."""

    def stats(self) -> engine_pb2.EngineStats:
        return self._loop.stats()


class EmbedLoop:
    """`add` and `stats` are called from other threads; `run` is the owner of the embedder."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._changed = threading.Condition()
        self._turns = EmbedTurns(self._changed)
        self._stats = engine_pb2.EngineStats()

    def add(self, work: VectorWork) -> None:
        """Raises `KithError` (`busy`)."""
        with self._changed:
            if len(self._turns) >= QUEUE_MAX:
                raise queue_full(QUEUE_MAX)
            self._turns.add(work)
            self._changed.notify()

    def stats(self) -> engine_pb2.EngineStats:
        """A copy of the figures; they may be one step old."""
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.queue_length = len(self._turns)
        return stats

    def run(self) -> None:
        """For ever."""
        while True:
            with self._changed:
                while not self._turns:
                    self._changed.wait()
            self.step()

    def step(self) -> None:
        begun = time.monotonic()
        self._stats.prompt_tokens_processed += self._turns.step()
        self._flush()
        self._stats.steps += 1
        self._stats.busy_seconds += time.monotonic() - begun


def _warm_up(embedder: Embedder) -> None:
    """A first text. It touches all weights, so that the first request does not pay for it, and runs the kernels for
    many rows, so that a CPU whose special units do not work crashes now and not under a request."""
    try:
        embedder.embed([[0] * min(WARM_UP_TOKENS, embedder.text_tokens_max)])
    except KithError as error:
        message = f"the model loads and then fails on its first text: {error.message}"
        raise KithError("bad-model", message, "Try another GGUF file.") from error
