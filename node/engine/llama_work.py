"""What occupies a slot: a feed of tokens and what to do with their logits. Each kind of work has a module of its own.

The batching loop knows one thing only: a work has a `target`, the tokens that its sequence must hold next, and wants
the logits of those from index `outputs_from` on. When they come it samples, sums or measures, and sets a new target
or is `done`. So a decode step is a feed of one token, and prefix reuse is the same for all kinds.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mesh.wire import common_pb2, engine_pb2
from node.engine import llama
from node.engine.backend import Request, cancelled
from node.errors import KithError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Work(ABC):
    """Invariants while not done: `target[outputs_from:]` is not empty, and `reuse_max` <= `outputs_from`; between two
    steps its slot holds no more than `target[:outputs_from]`, so what a slot lost can be read again."""

    def __init__(self, request: Request, target: list[int]) -> None:
        self.request = request
        self.prompt_tokens = len(target)
        self.target = target
        self.outputs_from = len(target) - 1  # index in target
        self.reuse_max = len(target) - 1  # tokens of a cached prefix that may stand in for the target's own
        self.rewind: int | None = None  # the new target goes on from this length of what the sequence holds
        self.decoding = False  # one token at a time from here on
        self.done = False
        self.adapter = ""  # name of the LoRA adapter that has to be set while it is decoded
        self.cached_tokens = 0
        self.queued_at = time.monotonic()
        self.began_at = 0.0
        self.first_token_at = 0.0
        self.completion_tokens = 0

    @property
    def cost(self) -> int:
        """For the fair queue: tokens that are to be read."""
        return len(self.target)

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

    def branches(self) -> Iterable[tuple[int, Sequence[int]]]:
        """What could be read beside the target in sequences of their own, in this step: tokens after the prompt, all
        of which give logits, with numbers for `take_branch`. Only what fits in the step is read; between two steps it
        is as if nothing of it ever was in the cache."""
        return ()

    def take_branch(self, number: int, logits: "NDArray[np.float32]") -> None:
        """Logits of one of the `branches`; comes before `take` of the same step."""
        raise AssertionError("it has no branches")

    def cancel(self) -> None:
        """End early; the last event says so."""
        self.fail(cancelled())

    def fail(self, error: KithError) -> None:
        """End without an answer."""
        self.request.put(engine_pb2.EngineEvent(problem=error.to_wire()), last=True)
        self.done = True

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


def log_probability(row: "NDArray[np.float32]", token: int) -> float:
    """Natural logarithm of softmax(row)[token]; the sum is taken in float64."""
    highest = row.max()
    return float(row[token] - highest) - float(np.log(np.exp(row - highest).sum(dtype=np.float64)))
