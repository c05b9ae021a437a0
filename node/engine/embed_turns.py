"""Requests for embeddings, taken in turn: a batch of texts of the first one, then of the next.

So one with many texts does not keep out one with few. An error in one request ends that request alone.
"""

import threading
from collections import deque

from node.engine.backend import guarded
from node.engine.embedding import VectorWork


class EmbedTurns:
    """`add` is called with `changed` held, from any thread; `step` without it, by the thread that computes."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: deque[VectorWork] = deque()  # guarded by _changed
        self._in_hand = 0  # that `step` is at

    def __len__(self) -> int:
        """Of requests that are not over."""
        return len(self._waiting) + self._in_hand

    def add(self, work: VectorWork) -> None:
        self._waiting.append(work)

    def step(self) -> int:
        """One batch of the first request; its tokens."""
        with self._changed:
            if not self._waiting:
                return 0
            work = self._waiting.popleft()
            self._in_hand = 1
        tokens = 0
        if work.request.cancelled:
            guarded(work, work.cancel)
        else:
            tokens = guarded(work, work.step) or 0
        with self._changed:
            self._in_hand = 0
            if not work.done:
                self._waiting.append(work)
        return tokens
