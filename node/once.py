"""Saying a thing once: what repeats is logged again only after a while.

Threat: a stranger that knocks ten times a second fills the log, and what matters is rotated away.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Once:
    """For any thread.

    Args:
        again_s: until the same may be said again.
        remembered: so many different things; the oldest is forgotten first.
    """

    def __init__(self, again_s: float, remembered: int = 256, now: Callable[[], float] = time.monotonic) -> None:
        self._again_s = again_s
        self._remembered = remembered
        self._now = now
        self._said: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.Lock()

    def due(self, thing: Hashable) -> bool:
        """Whether to say it; it counts as said then."""
        now = self._now()
        with self._lock:
            said_at = self._said.get(thing)
            if said_at is not None and now - said_at < self._again_s:
                return False
            self._said[thing] = now
            self._said.move_to_end(thing)
            if len(self._said) > self._remembered:
                self._said.popitem(last=False)
            return True
