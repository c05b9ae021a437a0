"""Requests for embeddings, taken in turn by the rule of all queues (waiting.py), a batch of texts a turn.

So one with many texts does not keep out one with few: an owner pays each batch. And none waits for ever behind more
urgent ones: what came AGED_S ago is as urgent as any, for all of its batches. An error in one request ends that
request alone.
"""

import math
import threading
import time

from node.engine.backend import guarded, too_late
from node.engine.embedding import VectorWork
from node.engine.waiting import AGED_S, Entry, Waiting
from node.limits import PRIORITY_MAX


class EmbedTurns:
    """`add` is called with `changed` held, from any thread; `step` without it, by the thread that computes."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: Waiting[VectorWork] = Waiting()  # guarded by _changed
        self._in_hand = 0  # that `step` is at

    def __len__(self) -> int:
        """Of requests that are not over."""
        return len(self._waiting) + self._in_hand

    def add(self, work: VectorWork) -> None:
        """For its next batch. What was begun does not come too late any more."""
        came_at = math.inf if work.began_at else work.queued_at
        self._waiting.add(Entry.of(work, work.request.asked, work.next_tokens, came_at))

    def step(self) -> int:
        """End what is of no use any more, then one batch of the next request; its tokens."""
        with self._changed:
            cancelled = self._waiting.drop(lambda work: work.request.cancelled)
            now = time.monotonic()
            late = self._waiting.too_late(now)
            self._waiting.raise_to(PRIORITY_MAX, lambda work: work.queued_at <= now - AGED_S)
            work = self._waiting.take()
            self._in_hand = 0 if work is None else 1
        for one in cancelled:
            guarded(one, one.cancel)
        for one in late:
            one.fail(too_late())
        if work is None:
            return 0
        tokens = guarded(work, work.step) or 0
        with self._changed:
            self._in_hand = 0
            if not work.done:
                self.add(work)
        return tokens
