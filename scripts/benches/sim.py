"""Simulator: many seeds of tests/sim, each a mesh of its own through two minutes of troubles in virtual time.

A violation is a seed in which any invariant broke, on the way or in the end; `scripts/test --seed N` shows its story.
KITH_SIM_SEEDS=A-B chooses the seeds (1-10000), KITH_SIM_NODES=A-B of them the worlds of so many nodes (3-1000), and
KITH_SIM_PROCESSES how many run at a time (one a core). All of them take hours; with KITH_SIM_RECORD=FILE each is kept
there as it ends, and the next run goes on where this one was stopped.
"""

import os
import sys
from pathlib import Path

from tests.sim.record import Record
from tests.sim.result import figures_of
from tests.sim.run import PROCESSES, range_of, run_seeds
from tests.sim.world import size_of_seed

SEEDS, NODES = "1-10000", "3-1000"
#: Seeds between two lines of progress.
TELL_EVERY = 100


def figures() -> dict[str, float]:
    sizes = range_of(os.environ.get("KITH_SIM_NODES", NODES))
    seeds = [seed for seed in range_of(os.environ.get("KITH_SIM_SEEDS", SEEDS)) if size_of_seed(seed) in sizes]
    processes = int(os.environ.get("KITH_SIM_PROCESSES", "0")) or PROCESSES
    record = Record(Path(os.environ["KITH_SIM_RECORD"])) if "KITH_SIM_RECORD" in os.environ else None
    results = []
    for result in run_seeds(seeds, processes, record):
        results.append(result)
        if not result.ok:
            print(f"  seed {result.seed}: {result.problems[0].strip().splitlines()[-1]}", flush=True)
        if len(results) % TELL_EVERY == 0:
            print(f"  {len(results)} of {len(seeds)} seeds", file=sys.stderr, flush=True)
    return figures_of(results)
