"""Simulator: many seeds of tests/sim, each a mesh of its own through two minutes of troubles in virtual time.

A violation is a seed in which any invariant broke, on the way or in the end; `scripts/test --seed N` shows its story.
KITH_SIM_SEEDS=A-B chooses the seeds (1-10000), KITH_SIM_PROCESSES how many run at a time (one a core). All of them take
hours; with KITH_SIM_RECORD=FILE each is kept there as it ends, and the next run goes on where this one was stopped.
"""

import os
import sys
from pathlib import Path

from tests.sim.record import Record
from tests.sim.result import figures_of
from tests.sim.run import PROCESSES, run_seeds

SEEDS = "1-10000"
#: Seeds between two lines of progress.
TELL_EVERY = 100


def figures() -> dict[str, float]:
    first, last = (int(part) for part in os.environ.get("KITH_SIM_SEEDS", SEEDS).split("-"))
    processes = int(os.environ.get("KITH_SIM_PROCESSES", "0")) or PROCESSES
    record = Record(Path(os.environ["KITH_SIM_RECORD"])) if "KITH_SIM_RECORD" in os.environ else None
    results = []
    for result in run_seeds(range(first, last + 1), processes, record):
        results.append(result)
        if not result.ok:
            print(f"  seed {result.seed}: {result.problems[0].strip().splitlines()[-1]}", flush=True)
        if len(results) % TELL_EVERY == 0:
            print(f"  {len(results)} of {last - first + 1} seeds", file=sys.stderr, flush=True)
    return figures_of(results)
