"""Texts to vectors, with the model that also writes: a second context on the same weights, made when first needed.

Pooling is the model's own where its file names one, else the mean over the tokens; vectors have length 1. Texts share
batches, each a sequence of its own. It runs on the loop's thread, a batch a step, beside what is being written: two
contexts that compute at once would fight for the cores.

Not guaranteed: good vectors from a model that was made to write; they order similar texts, no more.
"""

import ctypes
import time
from collections.abc import Sequence

import numpy as np

from mesh.wire import common_pb2, engine_pb2
from node.engine import llama
from node.engine.backend import Request, cancelled
from node.errors import ExitCode, KithError

#: Tokens of one text, at most; it has to fit in one batch. Threat: a batch needs half a megabyte a token in buffers.
TEXT_TOKENS_MAX = 512
#: Tokens of a batch that more texts are put into: what is being written waits for it.
BATCH_TOKENS = 128
TEXTS_AT_ONCE = 16

_MEAN = 1  # enum llama_pooling_type
_OWN = ("1", "2", "3")  # mean, first token, last token


class Embedder:
    """Belongs to the loop's thread."""

    def __init__(self, model: llama.Model, context_tokens: int, threads: int) -> None:
        self._model = model
        self.text_tokens_max = min(TEXT_TOKENS_MAX, context_tokens)
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
        own = self._model.meta(f"{self._model.meta('general.architecture')}.pooling_type")
        params.pooling_type = int(own) if own in _OWN else _MEAN
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


class EmbedWork:
    """One request's texts, batch by batch. `step` until `done`."""

    def __init__(self, request: Request, texts: Sequence[list[int]], embedder: Embedder) -> None:
        """Raises `KithError` (`prompt-too-long`, `bad-request`)."""
        longest, most = max(map(len, texts), default=0), embedder.text_tokens_max
        if longest > most:
            message = f"a text has {longest:,} tokens; embeddings take at most {most:,}"
            raise KithError("prompt-too-long", message, "Send it in parts.", ExitCode.BAD_INPUT)
        if not texts or not all(texts):
            raise KithError("bad-request", "there is nothing to embed", "Send texts.", ExitCode.BAD_INPUT)
        self.request = request
        self.done = False
        self._texts = texts
        self._embedder = embedder
        self._vectors: list[engine_pb2.EmbedReply.Vector] = []
        self.queued_at = time.monotonic()
        self.began_at = 0.0

    @property
    def tokens(self) -> int:
        return sum(map(len, self._texts))

    @property
    def next_tokens(self) -> int:
        """Of the batch that `step` embeds; above 0 until `done`."""
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
        texts, size = self._next_texts(), self.next_tokens
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
            self.request.put(engine_pb2.EngineEvent(embedded=reply), last=True)
            self.done = True
        return size

    def cancel(self) -> None:
        self.fail(cancelled())

    def fail(self, error: KithError) -> None:
        """End without an answer."""
        self.request.put(engine_pb2.EngineEvent(problem=error.to_wire()), last=True)
        self.done = True

    def close(self) -> None:
        """It holds nothing."""
