"""Frozen: four nodes, one job of 32 tasks at a fixed rate; what one node costs that stops where it is.

Echo engines at one pace in network namespaces. The makespan is from handing the job in until the node that took it has
it completed. `absent_s`: three nodes, the fourth has left. The variants stop one worker, neither leader nor submitter,
with SIGSTOP while it works on a task and two tasks are done: its daemon alone (`daemon`), its engine alone (`engine`),
both (`both`). Three runs each, in turns; a variant's figure is its median makespan minus the median of `absent_s`, and
`frozen_minus_absent_s` is that of the worst variant. `frozen_leader_minus_absent_s` stops the leader's daemon and
engine: reported, not part of the worst. Yardstick: another LAN router took 155.6 s with one peer frozen, 28.3 s with it
dead.

KITH_BENCH_RUNS (3) runs of each; 0 leaves this part out. KITH_BENCH_REAL=N (0) does the same N times with a real model
in each node, on one thread (`real_…`; --model FILE, else the default model), over a document of so many sections as
KITH_BENCH_REAL_SECTIONS says (10), each a task or more. KITH_BENCH_RUNS=0 KITH_BENCH_REAL=1 is that part alone.
"""

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Sequence

from node.errors import ExitCode, KithError
from scripts import workload
from scripts.benches import model, size
from scripts.daemons import ENGINE, Daemon, formed
from scripts.lan_hosts import Lan

RUNS = size("runs", 3)
REAL = size("real", 0)
REAL_SECTIONS = size("real_sections", 10)
PACE = {"KITH_ECHO_TOKENS_PER_S": "40"}
HOSTS = 4
#: With the echo engine 26 pieces, 5 to combine them, and the root. A model counts other tokens.
PIECES = 26
TASKS = 32
READY_WITHIN_S = 120.0
MAKESPAN_MAX_S = 400.0
VARIANTS = ("daemon", "engine", "both")


def figures() -> dict[str, float]:
    if RUNS <= 0 and REAL <= 0:
        raise KithError("usage", "there is no run to measure", "KITH_BENCH_RUNS=3 scripts/bench frozen", ExitCode.USAGE)
    found: dict[str, float] = {}
    if RUNS > 0:
        found |= asyncio.run(_measure(["--engine", "echo"], PACE, RUNS, PIECES))
        assert found["tasks"] == TASKS
    if REAL > 0:
        options = ["--model", str(model()), "--threads", "1"]
        real = asyncio.run(_measure(options, {}, REAL, REAL_SECTIONS))
        found |= {f"real_{name}": value for name, value in real.items()}
    return found


async def _measure(options: Sequence[str], environment: dict[str, str], runs: int, pieces: int) -> dict[str, float]:
    took: dict[str, list[float]] = {}
    jobs: list[workload.Job] = []
    tasks = 0
    with Lan.create(HOSTS, options, environment=environment) as lan:
        lan.start()
        everyone = list(lan.daemons.values())
        for run in range(runs):
            for variant in ("healthy", "absent", *VARIANTS, "leader"):
                seconds, tasks = await _one(everyone, variant, f"{variant}{run}-", pieces, jobs)
                took.setdefault(variant, []).append(seconds)
                print(f"  run {run}: {variant} {seconds:.2f} s", file=sys.stderr, flush=True)
        await workload.up(everyone, READY_WITHIN_S)
        lost = await workload.not_completed(everyone, jobs, 60.0)
    median = {variant: statistics.median(seconds) for variant, seconds in took.items()}
    over = {variant: median[variant] - median["absent"] for variant in (*VARIANTS, "leader")}
    return {
        "frozen_minus_absent_s": round(max(over[variant] for variant in VARIANTS), 2),
        **{f"frozen_{variant}_minus_absent_s": round(seconds, 2) for variant, seconds in over.items()},
        "healthy_s": round(median["healthy"], 2),
        "absent_s": round(median["absent"], 2),
        "jobs_lost": len(lost),
        "runs": runs,
        "tasks": tasks,
    }


async def _one(
    everyone: Sequence[Daemon], variant: str, subject: str, pieces: int, jobs: list[workload.Job]
) -> tuple[float, int]:
    """The makespan of a job and its tasks; afterwards nobody is frozen or absent any more."""
    leader = await workload.up(everyone, READY_WITHIN_S)
    submitter, victim, *_ = (one for one in everyone if one is not leader)
    if variant == "absent":
        victim.end()
        assert await formed([one for one in everyone if one is not victim]) is leader
    if variant == "leader":
        victim = leader
    began = time.monotonic()
    job = await workload.submit(submitter, pieces, subject)
    jobs.append(job)
    if variant in (*VARIANTS, "leader"):
        await workload.under_way(submitter, job, on=victim.name, within_s=120.0)
    if variant in ("daemon", "both", "leader"):
        victim.send(signal.SIGSTOP)
    if variant in ("engine", "both", "leader"):
        assert victim.send_children(ENGINE, signal.SIGSTOP) == 1
    try:
        last = await workload.completed(submitter, job, MAKESPAN_MAX_S)
        took = time.monotonic() - began
    finally:
        victim.send_all(signal.SIGCONT)
    if variant == "absent":
        victim.start()
    return took, last.tasks_total
