"""Discovery: three hosts on a LAN of namespaces, from a cold start to a formed mesh, ten times.

Measured from the first process's start until each of the three has all three alive in its view and all name the same
leader. No seeds: they find each other by mDNS. The echo engine runs in each: no model is loaded.
"""

import asyncio
import statistics
import time

from scripts.daemons import formed
from scripts.lan_hosts import Lan

RUNS = 10
FORMED_WITHIN_S = 60.0


def figures() -> dict[str, float]:
    took = sorted(one_run() for _ in range(RUNS))
    return {
        "cold_s_p50": round(statistics.median(took), 3),
        "cold_s_min": round(took[0], 3),
        "cold_s_max": round(took[-1], 3),
        "runs": RUNS,
    }


def one_run() -> float:
    with Lan.create(3, ["--engine", "echo"]) as lan:
        began = time.monotonic()
        lan.start()
        asyncio.run(formed(list(lan.daemons.values()), FORMED_WITHIN_S))
        return time.monotonic() - began
