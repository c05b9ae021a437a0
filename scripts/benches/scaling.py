"""Scaling: what a second, fourth and eighth node add to a batch of documents that are summarised.

Real daemons over mTLS on loopback, each pinned to cores of its own with all its children: two cores a node on a machine
with 16 or more, else one (KITH_BENCH_CORES, KITH_BENCH_NODES=1,2,4,8). The batch is KITH_BENCH_DOCUMENTS documents for
each node (KITH_BENCH_FIXED=1: the same for any number, as many as the most nodes get), handed in at once at the first
node; a document of three sections makes about seven tasks, the last of which combine the others. In turns,
KITH_BENCH_ROUNDS rounds, in each a fresh mesh of each size; before the clock starts, a short document for each node
warms it up.

  - `tokens_per_s_n`: tokens read and written by the tasks (without those that were cached), from the first document's
    submission until the last job is completed; medians.
  - `speedup_n`: the same by that of one node in the same round, median. `efficiency_n`: by n; wanted 0.93.
  - `bare_speedup_n`: engines without a mesh, pinned the same way, side by side: what the machine gives. What is lost
    there no mesh can win. KITH_BENCH_BARE=0 leaves it out. `against_bare_n`: speedup_n by it.
  - `busy_n`: the part of the time in which a node's slots ran a task, mean over nodes; `tail_n`: the part after the
    last task that a node finished, so what one document's end costs. The rest is gaps between tasks.
  - `leader_cpu_n`: CPU time of the daemon and the solver of the node that took most, so the leader's, by the CPU time
    that its cores have: what the mesh takes from that node's engine.

Some 2 s of one engine a task: 10 documents (the default) take a node about two minutes, whatever the number of nodes.
KITH_BENCH_SLOTS (1): sequences of an engine. --model FILE: scripts/random_model.py makes one where there is no network.
"""

import asyncio
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.wire import local_pb2
from node.errors import ExitCode, KithError
from scripts import workload
from scripts.benches import _scaling_bare, cpu_s, model, size, sizes
from scripts.daemons import ENGINE, Daemon, NotInTime, end_all, processes_of, until
from scripts.throwaway import ThrowawayMesh

PIECES = size("pieces", 3)
DOCUMENTS = size("documents", 10)
SLOTS = size("slots", 1)
CONTEXT_TOKENS = 2048
READY_WITHIN_S = 240.0
BATCH_WITHIN_S = 3600.0
LOOK_S = 0.5
BARE_TASKS = size("bare", 6)


@dataclass(frozen=True)
class Ran:
    """One batch. Times are seconds."""

    tokens: int
    seconds: float
    busy: float
    tail: float
    leader_cpu: float
    tasks: int
    attempts: int


def figures() -> dict[str, float]:
    if not hasattr(os, "sched_setaffinity"):
        raise KithError("bench-impossible", "pinning to cores needs Linux", "Run it there.", ExitCode.UNAVAILABLE)
    cores = sorted(os.sched_getaffinity(0))
    each = size("cores", 2 if len(cores) >= 16 else 1)
    most = len(cores) // each
    counts = [count for count in sizes("nodes", (1, 2, 4, 8)) if count <= most]
    places = [set(cores[number * each : (number + 1) * each]) for number in range(most)]
    path = model()
    rounds = size("rounds", 3)
    ran: dict[int, list[Ran]] = {count: [] for count in counts}
    bare: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts if number % 2 else reversed(counts):
            documents = DOCUMENTS * (max(counts) if size("fixed", 0) else count)
            one = asyncio.run(_batch(path, places[:count], documents))
            ran[count].append(one)
            told = f"{one.tokens / one.seconds:.1f} tokens/s, busy {one.busy:.3f}, {one.seconds:.1f} s"
            told += f", tail {one.tail:.3f}, leader {one.leader_cpu:.3f}, {one.attempts - one.tasks} tasks again"
            if BARE_TASKS:
                bare[count].append(asyncio.run(_scaling_bare.tokens_per_s(path, places[:count], SLOTS, BARE_TASKS)))
                told += f"; bare {bare[count][-1]:.1f} tokens/s"
            print(f"  round {number + 1}, {count} nodes: {told}", file=sys.stderr, flush=True)
    found: dict[str, float] = {
        "cores_each": each,
        "tasks_a_node": statistics.median(one.tasks for one in ran[counts[0]]),
    }
    for count in counts:
        rates = [one.tokens / one.seconds for one in ran[count]]
        found[f"tokens_per_s_{count}"] = round(statistics.median(rates), 2)
        found[f"busy_{count}"] = round(statistics.median(one.busy for one in ran[count]), 4)
        found[f"leader_cpu_{count}"] = round(statistics.median(one.leader_cpu for one in ran[count]), 4)
        found[f"tail_{count}"] = round(statistics.median(one.tail for one in ran[count]), 4)
        if count == counts[0]:
            continue
        ratios = [
            rate * counts[0] / (one.tokens / one.seconds) for rate, one in zip(rates, ran[counts[0]], strict=True)
        ]
        speedup = statistics.median(ratios)
        found[f"speedup_{count}"] = round(speedup, 3)
        found[f"efficiency_{count}"] = round(speedup / count, 3)
        if BARE_TASKS:
            pairs = zip(bare[count], bare[counts[0]], strict=True)
            machine = statistics.median(rate * counts[0] / single for rate, single in pairs)
            found[f"bare_speedup_{count}"] = round(machine, 3)
            found[f"against_bare_{count}"] = round(speedup / machine, 3)
    return found


def _pinned(cores: set[int]) -> list[str]:
    code = f"import os, sys; os.sched_setaffinity(0, {sorted(cores)}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code]


async def _batch(model: Path, places: Sequence[set[int]], documents: int) -> Ran:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        mesh = ThrowawayMesh()
        nodes: list[Daemon] = []
        seed: list[str] = []
        try:
            for number, cores in enumerate(places):
                options = ["--listen", "127.0.0.1:0", "--no-mdns", "--model", str(model), "--ctx", str(CONTEXT_TOKENS)]
                options += ["--threads", str(len(cores)), "--slots", str(SLOTS), *seed]
                nodes.append(
                    Daemon(Path(folder) / f"n{number}", options, name=f"n{number}", mesh=mesh, prefix=_pinned(cores))
                )
                nodes[-1].start()
                # One after the other: each engine measures its rates without others that are just loading.
                at = (await nodes[-1].ready(READY_WITHIN_S)).addresses[0]
                seed = seed or ["--seed", f"{at.host}:{at.port}"]
            await workload.up(nodes, READY_WITHIN_S)

            async def known() -> bool:
                return sum(len(info.profile.agents) for info in await nodes[0].nodes()) == len(nodes)

            await until(known, READY_WITHIN_S, "all agents are known")
            await _done(nodes[0], [await _hand_in(nodes[0], f"warming {number}", 1) for number in range(len(nodes))])
            before = [_cpu_s(node) for node in nodes]
            began_ms = time.time() * 1000
            jobs = await asyncio.gather(
                *(_hand_in(nodes[0], f"street {number}", PIECES) for number in range(documents))
            )
            told = await _done(nodes[0], jobs)
            cpu = max(_cpu_s(node) - earlier for node, earlier in zip(nodes, before, strict=True))
            ended_ms, last_ms = await _times_ms(nodes[0], jobs)
            seconds = (ended_ms - began_ms) / 1000
            return _counted(told, seconds, last_ms, ended_ms, cpu / seconds / len(places[0]))
        finally:
            wrong = end_all(nodes)
            assert not wrong, wrong


async def _hand_in(node: Daemon, subject: str, pieces: int) -> workload.Job:
    text = workload.document(pieces, subject).encode()
    async with node.client() as client:
        accepted = await client.submit(workload.summary(subject), text, client_key=secrets.token_bytes(16))
    return bytes(accepted.job_id)


async def _done(node: Daemon, jobs: Sequence[workload.Job]) -> list[local_pb2.JobSnapshot]:
    """Wait for them by looking twice a second: to watch each would be work for the node that is measured."""
    deadline = time.monotonic() + BATCH_WITHIN_S
    async with node.client() as client:
        while await client.jobs(open_only=True):
            if time.monotonic() > deadline:
                raise NotInTime(f"the batch was not done within {BATCH_WITHIN_S:g} s\n{node.tail()}")
            await asyncio.sleep(LOOK_S)
    return [await workload.completed(node, job) for job in jobs]


async def _times_ms(node: Daemon, jobs: Sequence[workload.Job]) -> tuple[float, list[float]]:
    """When the last job was completed, and when each node finished its last task; by the clock that all share."""
    ended, last = 0.0, dict[str, float]()
    async with node.client() as client:
        for job in jobs:
            for event in (await client.story(job)).events:
                if event.kind == "task_finished":
                    last[event.node_id] = max(last.get(event.node_id, 0.0), float(event.time_ms))
                elif event.kind == "job_completed":
                    ended = max(ended, float(event.time_ms))
    assert ended, "no job was completed"
    return ended, list(last.values())


def _cpu_s(node: Daemon) -> float:
    """CPU time of the daemon and its children but the engine."""
    return sum(cpu_s(pid) for pid, command in processes_of(node.data_dir).items() if ENGINE not in command)


def _counted(
    jobs: Sequence[local_pb2.JobSnapshot], seconds: float, last_ms: Sequence[float], ended_ms: float, leader_cpu: float
) -> Ran:
    tasks = [task for job in jobs for task in job.tasks]
    assert len(tasks) == sum(job.tasks_total for job in jobs), "details were dropped already: fewer documents"
    used = [task.usage for task in tasks]
    tokens = sum(usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens for usage in used)
    return Ran(
        tokens,
        seconds,
        sum(task.seconds for task in tasks) / (seconds * len(last_ms) * SLOTS),
        statistics.mean(ended_ms - at for at in last_ms) / 1000 / seconds,
        leader_cpu,
        len(tasks),
        sum(task.attempts for task in tasks),
    )
