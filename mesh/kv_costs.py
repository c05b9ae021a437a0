"""What it costs one node to take KV from another, as the moves so far have shown.

Idea: a move takes a fixed time and a time a byte, and every pair of nodes has its own of both. What a move really took
corrects them, each as far as it is not certain (a Kalman filter of two values): moves of several sizes tell the two
apart, and the newest count most. A move that brought nothing cost its time for nothing: the time is divided by the part
of what was expected that did come, which is what is spent until it all comes once. What was learned fades back to the
prior with its age, so a pair that was dear is tried again.

Does not: read a clock, or know why a move was slow. A holder whose engine is busy looks like a slow link to it.

Source: Kalman, "A New Approach to Linear Filtering and Prediction Problems", 1960; all deviations are relative here.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

#: Until a move was seen, and the longer ago the last one: what any move costs before its first byte, seconds, and bytes
#: a second of a wired LAN. Where that is too good the first moves show it, and cost at most as much as reading.
LATENCY_PRIOR_S = 0.02
BYTES_PER_S_PRIOR = 50e6
#: A move is not thought to cost more than so many times what it takes, however often nothing came.
CAME_MIN = 0.1
#: Weight of the newest move in what part came, at least; of the first ones it is as that of any before them.
NEWEST = 0.3
#: What was learned of a pair weighs half after so long without a move, seconds.
HALF_LIFE_S = 900.0
#: Standard deviations, as parts of the value: of the prior, of what a move takes, and of how the truth drifts from one
#: move to the next.
PRIOR_DEVIATION, NOISE, DRIFT = 2.0, 0.1, 0.1
#: Pairs remembered, which bounds the memory; the one that moved longest ago is forgotten.
PAIRS_MAX = 1024
#: Learned values are held between these: another node tells what its moves took, and a false figure must turn no cost
#: into zero or infinity.
LATENCY_MIN_S, LATENCY_MAX_S = 1e-5, 60.0
BYTES_PER_S_MIN, BYTES_PER_S_MAX = 1e2, 1e11
#: And what is told is looked at only below these.
BYTES_MAX, SECONDS_MAX = 1e12, 1e5


@dataclass(frozen=True, slots=True)
class KvCost:
    """Of moves from one node to another. Invariant: finite, `latency_s` and `s_per_byte` above 0, 0 ≤ `came` ≤ 1."""

    latency_s: float = LATENCY_PRIOR_S
    s_per_byte: float = 1.0 / BYTES_PER_S_PRIOR
    came: float = 1.0  # of what was expected, this part was brought
    moves: int = 0  # that this was learned from, failed ones too; 0: nothing but the prior
    # How uncertain the two times are: variances and covariance, relative to them.
    latency_variance: float = PRIOR_DEVIATION**2
    byte_variance: float = PRIOR_DEVIATION**2
    covariance: float = 0.0

    def takes_s(self, size_bytes: float) -> float:
        """A move of so much that succeeds."""
        return self.latency_s + size_bytes * self.s_per_byte

    def seconds(self, size_bytes: float) -> float:
        """What such a move costs, with those that fail."""
        return self.takes_s(size_bytes) / max(CAME_MIN, self.came)


PRIOR = KvCost()


class KvCosts:
    """By holder and taker. Times are seconds of one clock that does not go back."""

    def __init__(self, pairs_max: int = PAIRS_MAX) -> None:
        self._pairs_max = pairs_max
        self._learned: OrderedDict[tuple[str, str], tuple[KvCost, float]] = OrderedDict()  # and when

    def of(self, holder: str, taker: str, now_s: float) -> KvCost:
        if (learned := self._learned.get((holder, taker))) is None:
            return PRIOR
        cost, at_s = learned
        return _faded(cost, max(0.0, now_s - at_s))

    def moved(
        self, holder: str, taker: str, now_s: float, *, size_bytes: float, seconds: float | None, came: float
    ) -> None:
        """A move of `size_bytes` took so long (None: not known), and brought the part `came`, 0 to 1, of what was
        expected. Where that is 0, it was given up: all of it would have taken that long at least."""
        cost = self.of(holder, taker, now_s)
        if seconds is not None and 0.0 <= size_bytes <= BYTES_MAX and 0.0 <= seconds <= SECONDS_MAX:
            least_s = 0.0 if came > 0.0 else cost.takes_s(size_bytes)
            cost = _corrected(cost, size_bytes, max(least_s, seconds))
        part = cost.came + max(NEWEST, 1.0 / (cost.moves + 2)) * (min(1.0, max(0.0, came)) - cost.came)
        self._learned[holder, taker] = (replace(cost, came=part, moves=cost.moves + 1), now_s)
        self._learned.move_to_end((holder, taker))
        if len(self._learned) > self._pairs_max:
            self._learned.popitem(last=False)

    def validate(self) -> None:
        assert len(self._learned) <= self._pairs_max
        for cost, at_s in self._learned.values():
            assert math.isfinite(at_s)
            assert LATENCY_MIN_S <= cost.latency_s <= LATENCY_MAX_S
            assert 1.0 / BYTES_PER_S_MAX <= cost.s_per_byte <= 1.0 / BYTES_PER_S_MIN
            assert 0.0 <= cost.came <= 1.0
            assert cost.moves > 0
            assert min(cost.latency_variance, cost.byte_variance) > 0.0
            assert cost.covariance**2 <= cost.latency_variance * cost.byte_variance


def _corrected(cost: KvCost, size_bytes: float, seconds: float) -> KvCost:
    """With its times nearer to what a move took."""
    fixed, carrying = cost.latency_s, size_bytes * cost.s_per_byte
    takes = fixed + carrying
    of_fixed, of_byte, of_both = cost.latency_variance + DRIFT**2, cost.byte_variance + DRIFT**2, cost.covariance
    # Covariances of each value with what was measured, and the variance of that.
    with_fixed = of_fixed * fixed + of_both * carrying
    with_byte = of_both * fixed + of_byte * carrying
    variance = with_fixed * fixed + with_byte * carrying + (NOISE * takes) ** 2
    error = (seconds - takes) / variance
    takes += (with_fixed * fixed + with_byte * carrying) * error
    latency_s = fixed * (1.0 + with_fixed * error)
    s_per_byte = cost.s_per_byte * (1.0 + with_byte * error)
    # Where one value would have to be negative, the other takes what it can not.
    if latency_s < LATENCY_MIN_S and size_bytes:
        latency_s, s_per_byte = LATENCY_MIN_S, (takes - LATENCY_MIN_S) / size_bytes
    elif s_per_byte < 1.0 / BYTES_PER_S_MAX:
        latency_s, s_per_byte = takes - size_bytes / BYTES_PER_S_MAX, 1.0 / BYTES_PER_S_MAX
    latency_s = min(max(latency_s, LATENCY_MIN_S), LATENCY_MAX_S)
    s_per_byte = min(max(s_per_byte, 1.0 / BYTES_PER_S_MAX), 1.0 / BYTES_PER_S_MIN)
    # What the correction leaves of the variances, relative to the new values, and never more than the prior's: a value
    # that moves do not tell apart from the other would be less and less certain.
    of_fixed -= with_fixed * with_fixed / variance
    of_byte -= with_byte * with_byte / variance
    of_both -= with_fixed * with_byte / variance
    shrink_fixed = min(fixed / latency_s, PRIOR_DEVIATION / math.sqrt(of_fixed))
    shrink_byte = min(cost.s_per_byte / s_per_byte, PRIOR_DEVIATION / math.sqrt(of_byte))
    return replace(
        cost,
        latency_s=latency_s,
        s_per_byte=s_per_byte,
        latency_variance=of_fixed * shrink_fixed**2,
        byte_variance=of_byte * shrink_byte**2,
        covariance=of_both * shrink_fixed * shrink_byte,
    )


def _faded(cost: KvCost, age_s: float) -> KvCost:
    keeps = math.pow(0.5, age_s / HALF_LIFE_S)

    def towards(prior: float, value: float) -> float:
        return prior + (value - prior) * keeps

    return replace(
        cost,
        latency_s=PRIOR.latency_s * (cost.latency_s / PRIOR.latency_s) ** keeps,
        s_per_byte=PRIOR.s_per_byte * (cost.s_per_byte / PRIOR.s_per_byte) ** keeps,
        came=towards(PRIOR.came, cost.came),
        latency_variance=towards(PRIOR.latency_variance, cost.latency_variance),
        byte_variance=towards(PRIOR.byte_variance, cost.byte_variance),
        covariance=towards(PRIOR.covariance, cost.covariance),
    )
