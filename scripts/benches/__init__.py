"""One bench a file: each has `figures() -> dict[str, float]`, and its docstring says what it measures and how.

Sizes are defaults that an environment variable changes: `KITH_BENCH_ROUNDS=20 scripts/bench nemesis`.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

#: So many first tokens an engine may hold of a prompt that is new: the one that begins each, a word in common.
FEW_TOKENS = 16


def size(name: str, default: int) -> int:
    """The value of KITH_BENCH_NAME, or the default."""
    return int(os.environ.get(f"KITH_BENCH_{name.upper()}", default))


def sizes(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """The same of several numbers with commas between them."""
    named = os.environ.get(f"KITH_BENCH_{name.upper()}")
    return tuple(int(part) for part in named.split(",")) if named else default


def model() -> Path:
    """The model file to measure with: `scripts/bench NAME --model FILE`, else the default model, fetched if need be."""
    from node.models import ensure_default_model

    named = os.environ.get("KITH_BENCH_MODEL")
    return Path(named) if named else ensure_default_model(print)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values between which the median of all lies, with 95 % or all the certainty that so few give."""
    ranked, count = sorted(values), len(values)
    outside, place = 0.5**count, 0
    while place + 1 < count / 2 and outside + math.comb(count, place + 1) * 0.5**count <= 0.025:
        place += 1
        outside += math.comb(count, place) * 0.5**count
    return ranked[place], ranked[count - 1 - place]


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: the least value that so many per cent of the values do not exceed. Of at least one value."""
    assert values
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, to a clock tick (mostly 10 ms). Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Memory of a process in megabytes, its shared pages divided among those who share them. Linux only."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1024 / 1e6
