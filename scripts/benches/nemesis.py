"""Nemesis: rounds of random faults over running jobs on five real nodes; after each, everybody must agree again.

A round: three jobs are handed in at random nodes; once a task of each runs (or it has ended: `jobs_ended_early`), two
or three different faults begin within a second of each other and overlap for one to four seconds, and a fourth job is
handed in among them, which counts if it was accepted. Faults: daemons killed, stopped, frozen or with a blocked event
loop, engines and solvers killed or hung, hosts cut off, cut one way, split or losing 20 % of their frames, a full disk,
clocks that jump, all killed at once (scripts/faults.py). Then all is mended; within 90 s the mesh must be whole, every
job completed on every node, and the nodes agree: the same facts (`facts_digest` of their status), jobs and results.
`jobs_lost`: jobs that did not complete, also where they ended failed or cancelled: no job here may. `ledgers_diverged`:
rounds without agreement. What the daemons of such a round logged is kept. `duplicated_pct`: assignments of tasks beyond
the first of each, hedged copies and lost work included, in per cent of all tasks. After the last round all nodes are
killed and started again, and must agree on every job of all rounds.

200 rounds take about half an hour; KITH_BENCH_ROUNDS and KITH_BENCH_SEED choose others. The faults follow from the
seed, what they meet does not: a failing round is a story to read, not one to replay.
"""

import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from node.errors import KithError
from scripts import faults, faulty_node, workload
from scripts.benches import size
from scripts.daemons import Daemon, NotInTime, formed
from scripts.lan_hosts import Lan

ROUNDS = size("rounds", 200)
SEED = size("seed", 1)
HOSTS = 5
JOBS = 3
PIECES = 6
#: Of the host whose disk may fill; the jobs of 200 rounds need a fifth of it.
DISK_MB = 128
ENVIRONMENT = {"KITH_ECHO_TOKENS_PER_S": "60", "KITH_BLOCK_S": "3", "KITH_JUMP_S": "600"}
CONVERGED_WITHIN_S = 90.0
#: A submission whose node is frozen is given up; it was not accepted, as far as anybody knows.
SUBMIT_WITHIN_S = 15.0


class Tally:
    def __init__(self) -> None:
        self.lost: set[workload.Job] = set()
        self.ended_early = 0
        self.diverged = 0
        self.jobs: list[workload.Job] = []
        self.tasks = 0
        self.assignments = 0
        self.converged_s: list[float] = []
        self.faults = 0


def figures() -> dict[str, float]:
    tally = Tally()
    with Lan.create(HOSTS, ["--engine", "echo"], environment=ENVIRONMENT) as lan:
        for daemon in lan.daemons.values():
            daemon.entry = faulty_node.ENTRY
        lan.small_disk(lan.network.hosts[-1], DISK_MB)
        lan.start()
        asyncio.run(_rounds(lan, tally))
    return {
        "jobs_lost": len(tally.lost),
        "ledgers_diverged": tally.diverged,
        "duplicated_pct": round(100 * (tally.assignments - tally.tasks) / max(1, tally.tasks), 1),
        "converged_s_p50": round(statistics.median(tally.converged_s), 2) if tally.converged_s else 0.0,
        "converged_s_max": round(max(tally.converged_s), 2) if tally.converged_s else 0.0,
        "jobs": len(tally.jobs),
        "jobs_ended_early": tally.ended_early,
        "tasks": tally.tasks,
        "faults": tally.faults,
        "rounds": ROUNDS,
        "seed": SEED,
    }


async def _rounds(lan: Lan, tally: Tally) -> None:
    everyone = list(lan.daemons.values())
    await workload.up(everyone)
    for number in range(ROUNDS):
        began = time.monotonic()
        source = random.Random(f"{SEED}-{number}")
        drawn = faults.draw(lan, source, source.choice((2, 2, 3)))
        tally.faults += len(drawn)
        jobs = await _hand_in(everyone, number, source, tally)
        during = asyncio.create_task(_hand_in_amid(source.choice(everyone), number))
        await _break(lan, drawn, source)
        if (job := await during) is not None:
            jobs.append(job)
            tally.jobs.append(job)
        wrong = await _judge(lan, everyone, jobs, tally)
        told = ", ".join(fault.name for fault in drawn)
        print(
            f"  round {number}: {told}; {time.monotonic() - began:.1f} s {wrong}".rstrip(), file=sys.stderr, flush=True
        )
        if wrong:
            print(f"    its logs: {_keep_logs(lan, number)}", file=sys.stderr, flush=True)
    await _restart_all(lan, everyone, tally)


async def _hand_in(everyone: Sequence[Daemon], number: int, source: random.Random, tally: Tally) -> list[workload.Job]:
    """Three jobs at random nodes, each with a task that runs, or ended before the last of them began."""
    submitters = [source.choice(everyone) for _ in range(JOBS)]
    jobs = await asyncio.gather(
        *(
            workload.submit(one, PIECES, f"round{number}-{letter}")
            for one, letter in zip(submitters, "abc", strict=True)
        )
    )
    tally.jobs += jobs

    async def run() -> list[bool]:
        return await asyncio.gather(*(workload.begun(*each) for each in zip(submitters, jobs, strict=True)))

    await run()
    tally.ended_early += (await run()).count(False)  # the first may be done before the last begins
    return jobs


async def _hand_in_amid(daemon: Daemon, number: int) -> workload.Job | None:
    """A job, while faults come and go; None where it was not accepted."""
    await asyncio.sleep(1.0)
    try:
        async with asyncio.timeout(SUBMIT_WITHIN_S):
            return await workload.submit(daemon, PIECES, f"round{number}-d")
    except (KithError, TimeoutError):
        return None


async def _break(lan: Lan, drawn: Sequence[faults.Fault], source: random.Random) -> None:
    """All faults, each from its own moment on, for its own time; they overlap. In the end nothing is left of any."""
    spans = [(source.uniform(0.0, 0.8), source.uniform(1.0, 4.0)) for _ in drawn]

    async def one(fault: faults.Fault, after_s: float, for_s: float) -> None:
        await asyncio.sleep(after_s)
        await asyncio.to_thread(fault.begin)
        await asyncio.sleep(for_s)
        await asyncio.to_thread(fault.end)

    try:
        await asyncio.gather(*(one(fault, *span) for fault, span in zip(drawn, spans, strict=True)))
    finally:
        faults.mend_all(lan)


async def _judge(lan: Lan, everyone: Sequence[Daemon], jobs: list[workload.Job], tally: Tally) -> str:
    """Wait until all is well again; what is not, in words."""
    began = time.monotonic()
    try:
        await asyncio.gather(*(one.ready(CONVERGED_WITHIN_S) for one in everyone))
        await formed(everyone, CONVERGED_WITHIN_S)
        left = await workload.not_completed(everyone, jobs, CONVERGED_WITHIN_S)
        tally.lost |= left.keys()
        await workload.agreed(everyone, [job for job in jobs if job not in tally.lost], CONVERGED_WITHIN_S)
        tally.converged_s.append(time.monotonic() - began)
        for job in jobs:
            now = await workload.snapshot(everyone[0], job)
            tally.tasks += now.tasks_total
            tally.assignments += sum(max(1, task.attempts) for task in now.tasks)
    except (NotInTime, KithError, TimeoutError) as error:
        tally.diverged += 1
        faults.mend_all(lan)
        return f"DIVERGED: {error!r}"
    return "; ".join(left.values())


async def _restart_all(lan: Lan, everyone: Sequence[Daemon], tally: Tally) -> None:
    """What was told is on disk: it is there after all were killed at once."""
    for daemon in everyone:
        daemon.kill()
    lan.start()
    await workload.up(everyone, CONVERGED_WITHIN_S)
    left = await workload.not_completed(everyone, [job for job in tally.jobs if job not in tally.lost], 60.0)
    tally.lost |= left.keys()
    wrong = list(left.values())
    try:
        await workload.agreed(everyone, [job for job in tally.jobs if job not in tally.lost], CONVERGED_WITHIN_S)
    except NotInTime as error:
        tally.diverged += 1
        wrong.append(f"DIVERGED: {error!r}")
    print("  all restarted" + "".join(f"; {one}" for one in wrong), file=sys.stderr, flush=True)


def _keep_logs(lan: Lan, number: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"kith-nemesis-{number}-"))
    for host, daemon in lan.daemons.items():
        for path in (daemon.output, daemon.data_dir / "logs" / "kith.log"):
            if path.exists():
                shutil.copy(path, folder / f"{host}-{path.name}")
    return folder
