"""Soak: an hour of jobs and churn on four real nodes; what grows on those that are never restarted.

Two nodes stay up, two come and go: every 45 s one of these is restarted, killed, frozen or cut off for some seconds. A
job of seven tasks is handed in every five seconds, at any node. Every 15 s the two that stay are looked at: the private
memory of each process, open files and threads of the daemon, and the bytes of the data directory.

A node remembers what it did last: facts of closed jobs up to a limit, words, recent places. All of that is bounded, and
grows until its bound is reached. So the run begins with a warm-up of large jobs, one after the other, until each limit
is passed on both nodes; only what is seen after it counts. Growth is the slope of a straight line, of the worse of the
two nodes, per hour (`daemon_mb_growth_per_h`, `files_mb_growth_per_h` and so on) and per job (`daemon_kb_per_job`).
Jobs come at a steady pace, so these are two views of one growth: which part is of the jobs and which of time, one run
can not tell. Closed jobs are remembered for a year, so daemon and files grow with them; `engine`, `open_files` and
`threads` must be flat. `daemon` and `engine` are judged apart; the solver runs on the leader only and comes and goes
with it, so of it the largest size is told. `jobs_lost`: accepted jobs that are not completed, or not remembered by a
node.

KITH_BENCH_MINUTES, _JOB_EVERY_MS and _TOKENS_PER_S choose another length and pace. The warm-up takes half at most:
where it is cut short, some limits are not reached, and what still grows towards them is counted.
"""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.journal import RECENT_MAX
from mesh.retention import DETAILS_FACTS_MAX, EVERY_S
from node.errors import KithError
from scripts import faults, workload
from scripts.benches import size
from scripts.daemons import ENGINE, SOLVER, Daemon, processes_of
from scripts.lan_hosts import Lan

MINUTES = size("minutes", 60)
STAY, CHURN = 2, 2
JOB_EVERY_S = size("job_every_ms", 5000) / 1000
CHURN_EVERY_S = 45.0
LOOK_EVERY_S = 15.0
PIECES = 6
PACE = {"KITH_ECHO_TOKENS_PER_S": str(size("tokens_per_s", 120))}
OPTIONS = ["--engine", "echo"]
CONVERGED_WITHIN_S = 120.0
#: The warm-up: jobs of so many pieces, so many at a time, until a node knows so many facts.
WARM_PIECES, WARM_JOBS = 30, 4
WARM_FACTS = max(DETAILS_FACTS_MAX, RECENT_MAX) * 5 // 4
WARM_JOB_WITHIN_S = 300.0


@dataclass(frozen=True)
class Look:
    """One node at one time. Sizes in megabytes; `jobs`: handed in until then."""

    at: float  # time.monotonic()
    jobs: int
    daemon_mb: float
    engine_mb: float
    solver_mb: float
    files_mb: float
    open_files: float
    threads: float


#: What must not grow: attributes of a look.
JUDGED = ("daemon_mb", "engine_mb", "files_mb", "open_files", "threads")


def figures() -> dict[str, float]:
    with Lan.create(STAY + CHURN, OPTIONS, environment=PACE) as lan:
        lan.start()
        return asyncio.run(_soak(lan))


async def _soak(lan: Lan) -> dict[str, float]:
    everyone = list(lan.daemons.values())
    staying = everyone[:STAY]
    await workload.up(everyone)
    began = time.monotonic()
    ends_at = began + 60 * MINUTES
    source = random.Random(MINUTES)
    looks: dict[str, list[Look]] = {one.label: [] for one in staying}
    jobs = await _warm_up(everyone, staying, began + 30 * MINUTES)
    warm_s = time.monotonic() - began
    churned = asyncio.create_task(_churn(lan, source, ends_at))
    looking = asyncio.create_task(_look(staying, looks, jobs, ends_at))
    warm_jobs = len(jobs)
    try:
        while time.monotonic() < ends_at:
            if looking.done() or churned.done():
                break  # what went wrong is raised below
            try:
                jobs.append(await workload.submit(source.choice(everyone), PIECES, f"job{len(jobs)}-"))
            except (KithError, TimeoutError):
                continue  # a node that is down takes none: nothing was accepted
            await asyncio.sleep(JOB_EVERY_S)
        count = await churned
        await looking
    finally:
        churned.cancel()
        looking.cancel()
        faults.mend_all(lan)
    await workload.up(everyone)
    lost = await workload.not_completed(everyone, jobs, CONVERGED_WITHIN_S)
    for one in lost.values():
        print(f"  {one}", file=sys.stderr)
    return grown(list(looks.values())) | {
        "jobs_lost": len(lost),
        "jobs": len(jobs) - warm_jobs,
        "warm_up_jobs": warm_jobs,
        "warm_up_s": round(warm_s),
        "churns": count,
        "minutes": MINUTES,
    }


def grown(nodes: Sequence[Sequence[Look]]) -> dict[str, float]:
    """Slopes over all looks, of the worse node, and sizes at the end."""
    found: dict[str, float] = {}
    for name in JUDGED:
        columns = [[float(getattr(look, name)) for look in looks] for looks in nodes]
        per_s = [_slope([look.at for look in looks], column) for looks, column in zip(nodes, columns, strict=True)]
        found[f"{name}_growth_per_h"] = round(3600 * max(per_s), 2)
        found[f"{name}_end"] = round(max(column[-1] for column in columns), 1)
        if name.endswith("_mb"):
            per_job = [
                _slope([look.jobs for look in looks], column) for looks, column in zip(nodes, columns, strict=True)
            ]
            found[f"{name.removesuffix('_mb')}_kb_per_job"] = round(1000 * max(per_job), 1)
    return found | {"solver_mb_max": round(max(look.solver_mb for looks in nodes for look in looks), 1)}


async def _warm_up(everyone: Sequence[Daemon], staying: Sequence[Daemon], until: float) -> list[workload.Job]:
    """Jobs in a row until the staying nodes hold as much of the past as they ever will, or it is time to go on."""
    jobs: list[workload.Job] = []
    while time.monotonic() < until and min([(await one.status()).facts for one in staying]) < WARM_FACTS:
        batch = [
            await workload.submit(everyone[number % len(everyone)], WARM_PIECES, f"warm{len(jobs) + number}-")
            for number in range(WARM_JOBS)
        ]
        jobs += batch
        for job in batch:
            await workload.completed(staying[0], job, WARM_JOB_WITHIN_S)
    await asyncio.sleep(EVERY_S + LOOK_EVERY_S)  # retention has looked once since
    return jobs


async def _churn(lan: Lan, source: random.Random, ends_at: float) -> int:
    """How often a node went and came."""
    count = 0
    hosts = lan.network.hosts[STAY:]
    while time.monotonic() + CHURN_EVERY_S < ends_at:
        await asyncio.sleep(CHURN_EVERY_S)
        host = source.choice(hosts)
        for_s = source.uniform(1.0, 15.0)
        match source.randrange(4):
            case 0:
                await asyncio.to_thread(lan.daemon(host).end)
            case 1:
                await asyncio.to_thread(lan.kill, host)
            case 2:
                lan.freeze(host)
            case _:
                lan.isolate(host)
        await asyncio.sleep(for_s)
        await asyncio.to_thread(faults.mend_all, lan)
        count += 1
    return count


async def _look(
    daemons: Sequence[Daemon], looks: dict[str, list[Look]], jobs: Sequence[workload.Job], ends_at: float
) -> None:
    while time.monotonic() < ends_at:
        for daemon in daemons:
            daemon.must_run()
            looks[daemon.label].append(await asyncio.to_thread(_look_at, daemon, len(jobs)))
        await asyncio.sleep(LOOK_EVERY_S)


def _look_at(daemon: Daemon, jobs: int) -> Look:
    private = {"daemon": 0.0, "engine": 0.0, "solver": 0.0}
    for pid, command in processes_of(daemon.data_dir).items():
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # a child that just ended
        part = "engine" if ENGINE in command else "solver" if SOLVER in command else "daemon"
        private[part] += sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024 / 1e6
    proc = Path(f"/proc/{daemon.pid}")
    return Look(
        at=time.monotonic(),
        jobs=jobs,
        daemon_mb=private["daemon"],
        engine_mb=private["engine"],
        solver_mb=private["solver"],
        files_mb=sum(path.lstat().st_size for path in daemon.data_dir.rglob("*") if path.is_file()) / 1e6,
        open_files=len(list((proc / "fd").iterdir())),
        threads=len(list((proc / "task").iterdir())),
    )


def _slope(at: Sequence[float], values: Sequence[float]) -> float:
    """By least squares; 0 for a single value."""
    if len(set(at)) < 2:
        return 0.0
    return statistics.linear_regression(at, values).slope
