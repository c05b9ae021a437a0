"""Texts to vectors: by a model made for it, or by one that also writes, in a second context on the same weights.

The context is made when first needed. Pooling is the model's own where its file names one, else the mean over the
tokens; vectors have length 1. Texts share batches, each a sequence of its own. It runs on the loop's thread, a batch a
step, beside what is being written: two contexts that compute at once would fight for the cores.

Not guaranteed: good vectors from a model that was made to write; they order similar texts, no more.
"""

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import median

import numpy as np

from mesh.wire import common_pb2, engine_pb2
from node import gguf
from node.engine import llama
from node.engine.backend import Request, cancelled
from node.errors import ExitCode, KithError

#: Tokens of a batch that more texts are put into: what is being written waits for it.
BATCH_TOKENS = 128
TEXTS_AT_ONCE = 16
#: Of all vectors of one answer, which is one message between nodes. Threat: one that no frame holds ends the engine.
REPLY_BYTES_MAX = 3 << 20


class Embedder:
    """Belongs to the loop's thread."""

    def __init__(self, model: llama.Model, context_tokens: int, threads: int, pooling: int) -> None:
        """`pooling`: `GgufHeader.vector_pooling`."""
        self._model = model
        self._pooling = pooling
        # An encoder has no positions beyond those it was trained with.
        self.text_tokens_max = min(gguf.TEXT_TOKENS_MAX, context_tokens, model.trained_context_tokens)
        self._threads = threads
        self._pointer: object | None = None

    def embed(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """One vector a text. Raises `KithError` (`engine-failed`).

        Args:
            texts: as tokens; together at most `text_tokens_max`.
        """
        lib = llama.lib
        self._open()
        total = sum(map(len, texts))
        assert 0 < total <= self.text_tokens_max
        assert len(texts) <= TEXTS_AT_ONCE
        batch = lib.llama_batch_init(total, 0, 1)
        try:
            row = 0
            for sequence, tokens in enumerate(texts):
                for position, token in enumerate(tokens):
                    batch.token[row], batch.pos[row] = token, position
                    batch.n_seq_id[row], batch.logits[row] = 1, 1
                    batch.seq_id[row][0] = sequence
                    row += 1
            batch.n_tokens = total
            lib.llama_memory_clear(lib.llama_get_memory(self._pointer), True)
            if (code := lib.llama_decode(self._pointer, batch)) != 0:
                raise KithError("engine-failed", f"the texts can not be embedded (llama_decode returned {code})")
        finally:
            lib.llama_batch_free(batch)
        return [self._vector(sequence) for sequence in range(len(texts))]

    def _open(self) -> None:
        if self._pointer is not None:
            return
        lib = llama.lib
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.text_tokens_max
        params.n_seq_max = TEXTS_AT_ONCE
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = self._pooling
        params.no_perf = True
        self._pointer = lib.llama_init_from_model(self._model.pointer, params) or None
        if self._pointer is None:
            raise KithError("engine-failed", "there is no memory for embeddings", "Use a smaller model or --ctx.")

    def _vector(self, sequence: int) -> list[float]:
        pointer = llama.lib.llama_get_embeddings_seq(self._pointer, sequence)
        if not pointer:
            raise KithError("engine-failed", "the model gives no embeddings", "Use another model for this.")
        raw = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._model.embedding_size,))
        vector = raw.astype(np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise KithError("engine-failed", "the model gives no embeddings", "Use another model for this.")
        return [float(value) for value in (vector / length).astype(np.float32)]


class VectorWork(ABC):
    """What a request has the embedder do. `step` until `done`."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.done = False
        self.queued_at = time.monotonic()
        self.began_at = 0.0

    @property
    @abstractmethod
    def next_tokens(self) -> int:
        """Of the batch that `step` computes; above 0 until `done`."""

    @abstractmethod
    def step(self) -> int:
        """Compute one batch; returns its tokens."""

    def cancel(self) -> None:
        self.fail(cancelled())

    def fail(self, error: KithError) -> None:
        """End without an answer."""
        self.end(engine_pb2.EngineEvent(problem=error.to_wire()))

    def end(self, event: engine_pb2.EngineEvent) -> None:
        self.request.put(event, last=True)
        self.done = True


class EmbedWork(VectorWork):
    """One request's texts, batch by batch."""

    def __init__(self, request: Request, texts: Sequence[list[int]], embedder: Embedder) -> None:
        """Raises `KithError` (`prompt-too-long`, `bad-request`)."""
        longest, most = max(map(len, texts), default=0), embedder.text_tokens_max
        if longest > most:
            message = f"a text has {longest:,} tokens; embeddings take at most {most:,}"
            raise KithError("prompt-too-long", message, "Send it in parts.", ExitCode.BAD_INPUT)
        if not texts or not all(texts):
            raise KithError("bad-request", "there is nothing to embed", "Send texts.", ExitCode.BAD_INPUT)
        super().__init__(request)
        self._texts = texts
        self._embedder = embedder
        self._vectors: list[engine_pb2.EmbedReply.Vector] = []

    @property
    def tokens(self) -> int:
        return sum(map(len, self._texts))

    @property
    def next_tokens(self) -> int:
        return sum(map(len, self._next_texts()))

    def _next_texts(self) -> Sequence[list[int]]:
        begin = end = len(self._vectors)
        size = 0
        while end < len(self._texts) and end - begin < TEXTS_AT_ONCE:
            size += len(self._texts[end])
            if end > begin and size > min(BATCH_TOKENS, self._embedder.text_tokens_max):
                break
            end += 1
        return self._texts[begin:end]

    def step(self) -> int:
        """Embed one batch of texts; returns its tokens."""
        self.began_at = self.began_at or time.monotonic()
        texts = self._next_texts()
        size = sum(map(len, texts))
        try:
            vectors = self._embedder.embed(texts)
        except KithError as error:
            self.fail(error)
            return size
        self._vectors += [engine_pb2.EmbedReply.Vector(values=vector) for vector in vectors]
        if len(self._vectors) == len(self._texts):
            usage = common_pb2.Usage(
                prompt_tokens=self.tokens,
                prefill_seconds=time.monotonic() - self.began_at,
                queue_seconds=self.began_at - self.queued_at,
            )
            reply = engine_pb2.EmbedReply(vectors=self._vectors, usage=usage)
            self.end(engine_pb2.EngineEvent(embedded=reply))
        return size


class EmbedCalibration(VectorWork):
    """Measures how fast texts are read: the median over batches. Nothing is written, so there is no such rate.

    At most about `SECONDS`, if a single batch does not take longer.
    """

    BATCHES, SECONDS = 8, 2.0

    def __init__(self, request: Request, model: llama.Model, embedder: Embedder) -> None:
        super().__init__(request)
        self._embedder = embedder
        # Any tokens do: the time does not depend on them.
        length = min(BATCH_TOKENS, embedder.text_tokens_max)
        self._text = [(7919 * i) % model.vocabulary_size for i in range(length)]
        self._rates: list[float] = []

    @property
    def next_tokens(self) -> int:
        return len(self._text)

    def step(self) -> int:
        begun = time.monotonic()
        self.began_at = self.began_at or begun
        self._embedder.embed([self._text])
        now = time.monotonic()
        self._rates.append(len(self._text) / max(now - begun, 1e-9))
        if len(self._rates) >= self.BATCHES or now - self.began_at > self.SECONDS:
            rates = engine_pb2.Calibrated(prefill_tokens_per_s=median(self._rates))
            self.end(engine_pb2.EngineEvent(calibrated=rates))
        return len(self._text)


def embed_work(request: Request, model: llama.Model, embedder: Embedder) -> EmbedWork:
    """Of a command as it came. Raises `KithError` (`prompt-too-long`, `bad-request`)."""
    command = request.command.embed
    most = REPLY_BYTES_MAX // (4 * max(1, model.embedding_size))
    if len(command.texts) > most:
        message = f"one answer holds {most:,} vectors of this model, and {len(command.texts):,} texts are given"
        raise KithError("bad-request", message, "Send them in several calls.", ExitCode.BAD_INPUT)
    texts = [model.tokenize(text, special=True, control=False) for text in command.texts]
    return EmbedWork(request, texts, embedder)
