"""Soak: an hour of jobs and churn on four real nodes; what grows on those that are never restarted.

Two nodes stay up, two come and go: every 45 s one of these is restarted, killed, frozen or cut off for some seconds. A
job of seven tasks is handed in every five seconds, at any node. Every 15 s the two that stay are looked at: the private
memory of daemon, engine and solver, open files and threads of the daemon, and the bytes of the data directory. Growth
is the slope of a straight line through the second half of the time, of the worse of the two: per hour, and per job,
since closed jobs are remembered: what they cost each must be small, and nothing else may grow. `jobs_lost`: accepted
jobs that are not completed, or not remembered by a node. KITH_BENCH_MINUTES chooses another length.
"""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from node.errors import KithError
from scripts import faults, workload
from scripts.benches import size
from scripts.daemons import Daemon, processes_of
from scripts.lan_hosts import Lan

MINUTES = size("minutes", 60)
STAY, CHURN = 2, 2
JOB_EVERY_S = 5.0
CHURN_EVERY_S = 45.0
LOOK_EVERY_S = 15.0
PIECES = 6
PACE = {"KITH_ECHO_TOKENS_PER_S": "120"}
OPTIONS = ["--engine", "echo"]
CONVERGED_WITHIN_S = 120.0
#: What a look finds: names of figures and units.
COLUMNS = ("memory_mb", "open_files", "threads", "files_mb", "jobs")


def figures() -> dict[str, float]:
    with Lan.create(STAY + CHURN, OPTIONS, environment=PACE) as lan:
        lan.start()
        return asyncio.run(_soak(lan))


async def _soak(lan: Lan) -> dict[str, float]:
    everyone = list(lan.daemons.values())
    staying = everyone[:STAY]
    await workload.up(everyone)
    ends_at = time.monotonic() + 60 * MINUTES
    source = random.Random(MINUTES)
    looks: dict[str, list[tuple[float, ...]]] = {one.label: [] for one in staying}
    jobs: list[workload.Job] = []
    churned = asyncio.create_task(_churn(lan, source, ends_at))
    looking = asyncio.create_task(_look(staying, looks, jobs, ends_at))
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
    for one in lost:
        print(f"  {one}", file=sys.stderr)
    found: dict[str, float] = {}
    columns = [list(zip(*rows[len(rows) // 2 :], strict=True)) for rows in looks.values()]
    for place, name in enumerate(COLUMNS[:-1], 1):
        found[f"{name}_growth_per_h"] = round(3600 * max(_slope(one[0], one[place]) for one in columns), 2)
        found[f"{name}_end"] = round(max(one[place][-1] for one in columns), 1)
        if name.endswith("_mb"):
            per_job = max(_slope(one[-1], one[place]) for one in columns)
            found[f"{name.removesuffix('_mb')}_kb_per_job"] = round(1000 * per_job, 1)
    return found | {"jobs_lost": len(lost), "jobs": len(jobs), "churns": count, "minutes": MINUTES}


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
    daemons: Sequence[Daemon], looks: dict[str, list[tuple[float, ...]]], jobs: Sequence[workload.Job], ends_at: float
) -> None:
    while time.monotonic() < ends_at:
        await asyncio.sleep(LOOK_EVERY_S)
        for daemon in daemons:
            daemon.must_run()
            sizes = await asyncio.to_thread(_size_of, daemon)
            looks[daemon.label].append((time.monotonic(), *sizes, len(jobs)))


def _size_of(daemon: Daemon) -> tuple[float, ...]:
    memory = 0.0
    for pid in processes_of(daemon.data_dir):
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # a child that just ended
        memory += sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024 / 1e6
    proc = Path(f"/proc/{daemon.pid}")
    files = sum(path.lstat().st_size for path in daemon.data_dir.rglob("*") if path.is_file())
    return memory, len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir())), files / 1e6


def _slope(at: Sequence[float], values: Sequence[float]) -> float:
    """By least squares; 0 for a single value."""
    if len(set(at)) < 2:
        return 0.0
    return statistics.linear_regression(at, values).slope
