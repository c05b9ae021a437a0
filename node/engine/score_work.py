"""A scoring: the log-probability of given continuations of a prompt, the prompt being read once."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.backend import Request
from node.engine.llama_work import Work, log_probability

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    @property
    def cost(self) -> int:
        return len(self._prompt) + sum(map(len, self._continuations))

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
