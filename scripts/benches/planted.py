"""Planted bugs: of the bugs in tests/sim/planted*.py, how many the simulator sees within their number of seeds.

KITH_SIM_PROCESSES: how many are tried at a time (one a core).
"""

import multiprocessing
import os

from tests.sim.planting import all_bugs, look_for
from tests.sim.run import PROCESSES


def figures() -> dict[str, float]:
    processes = int(os.environ.get("KITH_SIM_PROCESSES", "0")) or PROCESSES
    needed: dict[str, int] = {}
    # A process a bug: a patch must not outlive its bug.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for search in pool.imap_unordered(look_for, [bug.name for bug in all_bugs()], chunksize=1):
            seeds = search.seen_after
            print(f"  {search.name}: " + (f"seen after {seeds} of its seeds" if seeds else "NOT SEEN"), flush=True)
            if seeds:
                needed[search.name] = seeds
    return {
        "planted": len(all_bugs()),
        "caught": len(needed),
        "seeds_mean": round(sum(needed.values()) / max(1, len(needed)), 1),
        "seeds_max": max(needed.values(), default=0),
    }
