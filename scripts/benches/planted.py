"""Planted bugs: of the bugs in tests/sim/planted*.py, how many the simulator sees within their number of seeds.

KITH_SIM_PROCESSES: how many are tried at a time (one a core).
"""

import multiprocessing
import os
import re

from tests.sim.planting import all_bugs
from tests.sim.run import run_seed


def figures() -> dict[str, float]:
    processes = int(os.environ.get("KITH_SIM_PROCESSES", "0")) or os.cpu_count() or 1
    needed: dict[str, int] = {}
    # A process a bug: a patch must not outlive its bug.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for name, seeds in pool.imap_unordered(first_seen, [bug.name for bug in all_bugs()], chunksize=1):
            print(f"  {name}: " + (f"seen after {seeds} of its seeds" if seeds else "NOT SEEN"), flush=True)
            if seeds:
                needed[name] = seeds
    return {
        "planted": len(all_bugs()),
        "caught": len(needed),
        "seeds_mean": round(sum(needed.values()) / max(1, len(needed)), 1),
        "seeds_max": max(needed.values(), default=0),
    }


def first_seen(name: str) -> tuple[str, int]:
    """After how many of its seeds the bug is seen; 0 where it is in none. For a process of its own."""
    bug = next(bug for bug in all_bugs() if bug.name == name)
    bug.plant(setattr)
    for count in range(bug.seeds):
        if any(re.search(bug.seen_as, problem) for problem in run_seed(bug.first + count).problems):
            return name, count + 1
    return name, 0
