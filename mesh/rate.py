"""How often: a token bucket for each caller, that fills again with time.

Does not: read a clock, wait, or say no; whoever asks does.

Source: token buckets as in RFC 2697.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass
class _Bucket:
    left: float
    at: float


class Rate:
    """A bucket for each caller that fills again with time. Units are the caller's: calls, bytes, facts."""

    def __init__(self, per_s: float, burst: float, *, remembered: int = 4096) -> None:
        """`remembered`: buckets kept; the one that was used longest ago is forgotten, and so full again."""
        assert min(per_s, burst) > 0
        self._per_s = per_s
        self._burst = burst
        self._remembered = remembered
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def wait_s(self, who: Hashable, now: float, amount: float = 1.0) -> float:
        """0 where `amount` was taken; else nothing was, and there is room for it after so many seconds.

        What is larger than a whole bucket is taken when the bucket is full, and leaves it in debt.
        """
        bucket = self._refilled(who, now)
        missing = min(amount, self._burst) - bucket.left
        if missing > 0:
            return missing / self._per_s
        bucket.left -= amount
        return 0.0

    def charge(self, who: Hashable, now: float, amount: float = 1.0) -> float:
        """Take `amount` in any case; how long to wait until the bucket is out of debt."""
        bucket = self._refilled(who, now)
        bucket.left -= amount
        return max(0.0, -bucket.left / self._per_s)

    def _refilled(self, who: Hashable, now: float) -> _Bucket:
        bucket = self._buckets.pop(who, None) or _Bucket(self._burst, now)
        bucket.left = min(self._burst, bucket.left + max(0.0, now - bucket.at) * self._per_s)
        bucket.at = now
        self._buckets[who] = bucket
        if len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return bucket
