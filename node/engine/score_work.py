"""A scoring: the log-probability of given continuations of a prompt, the prompt being read once.

A step reads one continuation in the request's own sequence, and in spare ones as many others as fit (`branches`). Where
the cache has no spare sequences, they are read one after another.
"""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.backend import Request
from node.engine.llama_work import Work, log_probability

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ScoreWork(Work):
    """Log-probability of each continuation: the prompt is fed once, then the continuations after rolling back to it.

    The first token of every continuation is judged by the prompt's last logits, which are kept.
    """

    def __init__(self, request: Request, prompt: list[int], continuations: Sequence[list[int]]) -> None:
        super().__init__(request, list(prompt))
        assert all(continuations)
        self._prompt = prompt
        self._continuations = continuations
        self._sums: dict[int, float] = {}  # by number, of the continuations that are done
        self._first: list[float] = []  # of each one's first token
        self._current = 0  # number of the one that the target holds
        self._sum = 0.0  # of its tokens
        self._judged = 0  # so many are in the sum

    @property
    def cost(self) -> int:
        return len(self._prompt) + sum(map(len, self._continuations))

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        del context, batch_row
        if not self._first:
            self.first_token_at = time.monotonic()
            row = logits[-1]
            rest = log_probability(row, 0) - float(row[0])  # the same for every token, and slow
            self._first = [rest + float(row[tokens[0]]) for tokens in self._continuations]
            self._sums = {n: self._first[n] for n, tokens in enumerate(self._continuations) if len(tokens) == 1}
            self._next()
            return
        # A long continuation may come in several batches: this one judges the tokens after those judged before.
        tokens = self._continuations[self._current]
        self._sum += _judged(logits, tokens[self._judged : self._judged + len(logits)])
        self._judged += len(logits)
        self.outputs_from += len(logits)
        if self._judged == len(tokens):
            self._sums[self._current] = self._sum
            self._next()

    def branches(self) -> Iterable[tuple[int, Sequence[int]]]:
        if self._first:
            for number, tokens in enumerate(self._continuations):
                if number not in self._sums and number != self._current:
                    yield number, tokens[:-1]

    def take_branch(self, number: int, logits: "NDArray[np.float32]") -> None:
        self._sums[number] = self._first[number] + _judged(logits, self._continuations[number][1:])

    def _next(self) -> None:
        """Start the longest continuation that is left: one that fills a batch can be no branch."""
        counts = [len(tokens) for tokens in self._continuations]
        left = [number for number in range(len(counts)) if number not in self._sums]
        if left:
            self._current = max(left, key=lambda number: counts[number])
            self._sum, self._judged = self._first[self._current], 1
            self.target = self._prompt + self._continuations[self._current][:-1]
            self.outputs_from = self.rewind = len(self._prompt)
            return
        self.completion_tokens = sum(counts)
        sums = [self._sums[number] for number in range(len(counts))]
        reply = engine_pb2.ScoreReply(log_probabilities=sums, token_counts=counts, usage=self.usage())
        self.request.put(engine_pb2.EngineEvent(score=reply), last=True)
        self.done = True


def _judged(logits: "NDArray[np.float32]", tokens: Sequence[int]) -> float:
    return sum(log_probability(row, token) for row, token in zip(logits, tokens, strict=True))
