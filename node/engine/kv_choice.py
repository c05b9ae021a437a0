"""Which kind of KV cache the work asks for: cells of its own for each slot (split), or one pool for all (unified).

In a split cache a row's attention reads its own sequence, in a unified one all cells in use; cells of a common
beginning are there once. So what counts is how many of the tokens of prompts that are worked at together are distinct.
Hysteresis keeps it from going back and forth: what is seen is summed up over many requests, the two thresholds are
apart, and after a change it takes so many requests again before the next.

A pure machine: no clock, no library. docs/engine.md has the measurements behind the thresholds.
"""

from collections import deque

SPLIT, UNIFIED = "split", "unified"

#: Requests that have to be seen since the last change before there is another one, and those that are looked back on.
SEEN_MIN, SEEN_MAX = 16, 32
#: Distinct tokens by all tokens of prompts that are worked at together.
UNIFIED_BELOW, SPLIT_ABOVE = 0.25, 0.3


class KvChoice:
    """Invariant: `wanted` differs from `kind` only where at least `SEEN_MIN` requests were seen since the change."""

    def __init__(self, kind: str = SPLIT) -> None:
        self.kind = kind
        self._seen: deque[tuple[int, int]] = deque(maxlen=SEEN_MAX)

    def seen(self, distinct: int, total: int) -> None:
        """A request came.

        Args:
            distinct: tokens of its prompt and of those that are being worked at, common beginnings counted once.
            total: the same, each counted by itself.
        """
        assert 0 <= distinct <= total
        self._seen.append((distinct, total))

    def changed(self, kind: str) -> None:
        """It is of this kind now."""
        self.kind = kind
        self._seen.clear()

    @property
    def distinct_share(self) -> float | None:
        """Of the tokens of prompts that were worked at together; None: too few were seen."""
        total = sum(total for _, total in self._seen)
        if len(self._seen) < SEEN_MIN or total == 0:
            return None
        return sum(distinct for distinct, _ in self._seen) / total

    @property
    def wanted(self) -> str:
        share = self.distinct_share
        if share is None:
            return self.kind
        return UNIFIED if share < UNIFIED_BELOW else SPLIT if share > SPLIT_ABOVE else self.kind

    @property
    def why(self) -> str:
        share = self.distinct_share
        if share is None:
            return f"auto: fewer than {SEEN_MIN} requests came since it is so"
        return f"auto: {share:.0%} of the tokens of prompts that run together are distinct"
