"""One bench a file: each has `figures() -> dict[str, float]`, and its docstring says what it measures and how.

Sizes are defaults that an environment variable changes: `KITH_BENCH_ROUNDS=20 scripts/bench nemesis`.
"""

import math
import os
from collections.abc import Sequence


def size(name: str, default: int) -> int:
    """The value of KITH_BENCH_NAME, or the default."""
    return int(os.environ.get(f"KITH_BENCH_{name.upper()}", default))


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: the least value that so many per cent of the values do not exceed. Of at least one value."""
    assert values
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]
