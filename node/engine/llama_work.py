"""What occupies a slot: a generation, a scoring or a calibration, each as a feed of tokens and what to do with logits.

The batching loop knows one thing only: a work has a `target`, the tokens that its sequence must hold next, and wants
the logits of those from index `outputs_from` on. When they come it samples, sums or measures, and sets a new target
or is `done`. So a decode step is a feed of one token, and prefix reuse is the same for all three.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mesh.wire import common_pb2, engine_pb2
from node.engine import llama
from node.engine.backend import Request
from node.engine.sampling import chain_of
from node.engine.text_stream import TextStream

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Work(ABC):
    """Invariant while not done: `target[outputs_from:]` is not empty, and `reuse_max` <= `outputs_from`."""

    def __init__(self, request: Request, target: list[int]) -> None:
        self.request = request
        self.prompt_tokens = len(target)
        self.target = target
        self.outputs_from = len(target) - 1  # index in target
        self.reuse_max = len(target) - 1  # tokens of a cached prefix that may stand in for the target's own
        self.rewind: int | None = None  # the new target goes on from this length of what the sequence holds
        self.decoding = False  # one token at a time from here on: such rows go first
        self.done = False
        self.cached_tokens = 0
        self.queued_at = time.monotonic()
        self.began_at = 0.0
        self.first_token_at = 0.0
        self.completion_tokens = 0

    def began(self, cached_tokens: int) -> None:
        """The work has a slot, which already holds that much of the target."""
        self.began_at = time.monotonic()
        self.cached_tokens = cached_tokens

    def fed(self, tokens: int, seconds: float) -> None:
        """A batch with that many tokens of this work took so long."""
        del tokens, seconds

    @abstractmethod
    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        """Logits of consecutive tokens of the target, the last of which was row `batch_row` of the batch.

        The array is the library's memory, gone with the next decode."""

    @abstractmethod
    def cancel(self) -> None:
        """End early; the last event says so."""

    def close(self) -> None:  # noqa: B027 - most works hold nothing
        """Give back what the work holds. Called once, whatever happened."""

    def usage(self) -> common_pb2.Usage:
        now = time.monotonic()
        began = self.began_at or now
        first = self.first_token_at or now
        return common_pb2.Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            prefill_seconds=first - began,
            decode_seconds=now - first,
            queue_seconds=began - self.queued_at,
        )


class GenerateWork(Work):
    def __init__(self, request: Request, prompt: list[int], model: llama.Model, context_tokens: int) -> None:
        super().__init__(request, prompt)
        command = request.command.generate
        assert len(prompt) < context_tokens
        self._model = model
        # A sampled token needs no room of its own: the last one is never fed back.
        room = context_tokens - len(prompt) + 1
        self._tokens_max = min(command.max_tokens or room, room)
        self._stream = TextStream(command.stop)
        self._chain = chain_of(command.sampling, model)
        self._silent: list[int] = []  # tokens since the last delta
        for token in command.continue_tokens:  # what they showed was shown; what they hold back comes now
            self._stream.feed(model.piece(token))

    def began(self, cached_tokens: int) -> None:
        super().began(cached_tokens)
        self.request.started(self.prompt_tokens, cached_tokens)

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        if self._chain is None:
            token = int(logits[-1].argmax())
        else:
            token = self._chain.sample(context, batch_row)
        if not self.decoding:
            self.first_token_at = time.monotonic()
            self.decoding = True
        self.completion_tokens += 1
        if self._model.is_end(token):
            self._finish("stop")
            return
        self._say(token, self._stream.feed(self._model.piece(token)))
        if self._stream.stopped:
            self._finish("stop")
        elif self.completion_tokens >= self._tokens_max:
            self._finish("length")
        else:
            self.outputs_from = len(self.target)
            self.target.append(token)

    def _say(self, token: int, text: str) -> None:
        self._silent.append(token)
        if text:
            ids = self._silent if self.request.command.generate.want_tokens else ()
            self.request.delta(text, len(self._silent), ids)
            self._silent = []

    def _finish(self, reason: str) -> None:
        if rest := self._stream.finish():
            self.request.delta(rest, 0)
        self.request.finished(reason, self.usage())
        self.done = True

    def cancel(self) -> None:
        self._finish("cancelled")

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


class ScoreWork(Work):
    """Log-probability of each continuation: the prompt is fed once, then each continuation after rolling back to it.

    The first token of every continuation is judged by the prompt's last logits, which are kept.
    """

    def __init__(self, request: Request, prompt: list[int], continuations: Sequence[list[int]]) -> None:
        super().__init__(request, list(prompt))
        assert all(continuations)
        self._prompt = prompt
        self._continuations = continuations
        self._after_prompt: NDArray[np.float32] | None = None
        self._sums: list[float] = []  # of the continuations that are done
        self._sum = 0.0  # of the current one
        self._judged = 0  # its tokens that are in the sum

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        if self._after_prompt is None:
            self.first_token_at = time.monotonic()
            self._after_prompt = logits[-1].copy()
            self._next()
            return
        # A long continuation may come in several batches: this one judges the tokens after those judged before.
        tokens = self._continuations[len(self._sums)]
        judged = tokens[self._judged : self._judged + len(logits)]
        self._sum += sum(log_probability(row, token) for row, token in zip(logits, judged, strict=True))
        self._judged += len(logits)
        self.outputs_from += len(logits)
        if self._judged == len(tokens):
            self._sums.append(self._sum)
            self._next()

    def _next(self) -> None:
        """Start the next continuation; those of one token are known at once."""
        assert self._after_prompt is not None
        while len(self._sums) < len(self._continuations):
            tokens = self._continuations[len(self._sums)]
            self._sum = log_probability(self._after_prompt, tokens[0])
            self._judged = 1
            if len(tokens) > 1:
                self.target = self._prompt + tokens[:-1]
                self.outputs_from = self.rewind = len(self._prompt)
                return
            self._sums.append(self._sum)
        counts = [len(tokens) for tokens in self._continuations]
        self.completion_tokens = sum(counts)
        reply = engine_pb2.ScoreReply(log_probabilities=self._sums, token_counts=counts, usage=self.usage())
        self.request.put(engine_pb2.EngineEvent(score=reply), last=True)
        self.done = True

    def cancel(self) -> None:
        problem = common_pb2.Problem(code="cancelled", message="The request was cancelled.")
        self.request.put(engine_pb2.EngineEvent(problem=problem), last=True)
        self.done = True


def log_probability(row: "NDArray[np.float32]", token: int) -> float:
    """Natural logarithm of softmax(row)[token]; the sum is taken in float64."""
    highest = row.max()
    return float(row[token] - highest) - float(np.log(np.exp(row - highest).sum(dtype=np.float64)))


class CalibrateWork(Work):
    """Measures the rates that a cost model reads: the median over batches of prefill, and over decode steps.

    It runs as any other work does, so it measures the loop, not the library alone. Bounded in time: at most about
    `PREFILL_SECONDS` + `DECODE_SECONDS`, if a single batch does not take longer.
    """

    PREFILL_TOKENS = 256
    DECODE_TOKENS = 32
    PREFILL_SECONDS = 2.0
    DECODE_SECONDS = 0.8

    def __init__(self, request: Request, model: llama.Model, context_tokens: int) -> None:
        length = min(self.PREFILL_TOKENS, context_tokens // 2)
        # Any tokens do: the time does not depend on them. These are ordinary ones of every vocabulary.
        super().__init__(request, [(7919 * i) % (model.vocabulary_size // 2) + 100 for i in range(length)])
        self.reuse_max = 0
        self._fed = 0
        self._prefill_rates: list[float] = []
        self._decode_rates: list[float] = []

    def fed(self, tokens: int, seconds: float) -> None:
        rate = tokens / max(seconds, 1e-9)
        self._fed += tokens
        if self.decoding:
            self._decode_rates.append(rate)
            return
        if tokens > 1 or not self._prefill_rates:
            self._prefill_rates.append(rate)
        late = time.monotonic() - self.began_at + seconds > self.PREFILL_SECONDS
        if late and self._fed < len(self.target):
            self.target = self.target[: self._fed + 1]
            self.outputs_from = self._fed

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        self.decoding = True
        self.first_token_at = self.first_token_at or time.monotonic()
        late = time.monotonic() - self.first_token_at > self.DECODE_SECONDS
        if len(self._decode_rates) >= self.DECODE_TOKENS or (late and self._decode_rates):
            self._finish()
            return
        self.outputs_from = len(self.target)
        self.target.append(int(logits[-1].argmax()))

    def _finish(self) -> None:
        rates = engine_pb2.Calibrated(
            prefill_tokens_per_s=median(self._prefill_rates), decode_tokens_per_s=median(self._decode_rates)
        )
        self.request.put(engine_pb2.EngineEvent(calibrated=rates), last=True)
        self.done = True

    def cancel(self) -> None:
        problem = common_pb2.Problem(code="cancelled", message="The calibration was cancelled.")
        self.request.put(engine_pb2.EngineEvent(problem=problem), last=True)
        self.done = True
