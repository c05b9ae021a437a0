"""Failover: tasks wait, the leader goes; until the next assignment by its successor is in the journal of a survivor.

Three nodes with echo engines in network namespaces. `failover_s`: the leader's daemon gets SIGKILL (30 times), from the
signal on. `failover_cut_s`: the leader's host is cut off without a reset (10 times), from the first of the rules on.
`failover_two_s`: SIGKILL where only two nodes are (10 times). The end is read at the survivors' doors every 10 ms, so
figures are upper bounds by that much: the assignment may come from the greedy rule while the solver starts, and it is
shown once it is durable. Each time the leader comes back, the mesh forms again, and at least ten tasks wait.
`jobs_lost`: accepted jobs that are not completed on every node at the end. Yardstick: etcd 3.5.1 needs 1.31 s.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable

from node.errors import KithError
from scripts import workload
from scripts.benches import percentile, size
from scripts.daemons import Daemon, NotInTime, until
from scripts.lan_hosts import Lan

KILLS = size("kills", 30)
CUTS = size("cuts", 10)
KILLS_OF_TWO = size("kills_of_two", 10)
#: Pace of the engines: a task takes about 0.6 s, so that a survivor is soon free for the next one.
PACE = {"KITH_ECHO_TOKENS_PER_S": "100"}
PIECES = 40
WAITING_MIN = 10
LOOK_S = 0.01
TAKEN_OVER_WITHIN_S = 60.0

Break = Callable[[Lan, str], None]


def figures() -> dict[str, float]:
    killed, lost = asyncio.run(_series(3, KILLS, lambda lan, host: lan.kill(host), _restart))
    cut, lost_by_cuts = asyncio.run(_series(3, CUTS, lambda lan, host: lan.isolate(host), _heal))
    two, lost_by_two = asyncio.run(_series(2, KILLS_OF_TWO, lambda lan, host: lan.kill(host), _restart))
    return {
        "failover_s_p50": round(statistics.median(killed), 3),
        "failover_s_p95": round(percentile(killed, 95), 3),
        "failover_s_max": round(max(killed), 3),
        "failover_cut_s_p50": round(statistics.median(cut), 3),
        "failover_cut_s_max": round(max(cut), 3),
        "failover_two_s_p50": round(statistics.median(two), 3),
        "failover_two_s_max": round(max(two), 3),
        "jobs_lost": lost + lost_by_cuts + lost_by_two,
        "runs": len(killed),
        "runs_cut": len(cut),
        "runs_two": len(two),
    }


def _restart(lan: Lan, host: str) -> None:
    lan.start(host)


def _heal(lan: Lan, _: str) -> None:
    lan.heal()


async def _series(count: int, runs: int, break_: Break, mend: Break) -> tuple[list[float], int]:
    """Seconds of each run, and how many jobs were lost."""
    with Lan.create(count, ["--engine", "echo"], environment=PACE) as lan:
        lan.start()
        everyone = list(lan.daemons.values())
        jobs: list[workload.Job] = []
        took = []
        for _ in range(runs):
            leader = await workload.up(everyone)
            survivors = [one for one in everyone if one is not leader]
            await _tasks_wait(leader, survivors[0], jobs)
            took.append(await _one(lan, leader, survivors, jobs, break_))
            mend(lan, leader.name)
        await workload.up(everyone)
        lost = await workload.not_completed(everyone, jobs, 120.0)
        for one in lost.values():
            print(one, file=sys.stderr)
        return took, len(lost)


async def _tasks_wait(leader: Daemon, submitter: Daemon, jobs: list[workload.Job]) -> None:
    """Wait until this leader has assigned something and enough tasks are ready for the next node that is free."""
    token = (await leader.status()).leader

    async def probe() -> bool:
        async with submitter.client() as client:
            still_open = [one.job_id for one in await client.jobs(open_only=True)]
            waiting = 0
            assigns = False
            for job in still_open:
                async for now in client.watch(job):
                    waiting += sum(task.state == "ready" for task in now.tasks)
                    break
                rounds = (await client.explain(job)).rounds
                assigns = assigns or any(one.assigned.token == token for one in rounds)
        if waiting < WAITING_MIN and len(still_open) < 3:
            jobs.append(await workload.submit(submitter, PIECES, f"street{len(jobs)}-"))
            return False
        return assigns and waiting >= WAITING_MIN

    await until(probe, 60.0, "tasks wait")


async def _one(lan: Lan, leader: Daemon, survivors: list[Daemon], jobs: list[workload.Job], break_: Break) -> float:
    old = (await leader.status()).leader
    clients = [one.client() for one in survivors]
    try:
        still_open = [one.job_id for one in await clients[0].jobs(open_only=True)]
        assert set(still_open) & set(jobs), "no task waits any more"
        for client in clients:
            await client.status()  # connected before the clock runs
        began = time.monotonic()
        breaking = asyncio.create_task(asyncio.to_thread(break_, lan, leader.name))
        while time.monotonic() - began < TAKEN_OVER_WITHIN_S:
            for client in clients:
                for job in still_open:
                    try:
                        rounds = (await client.explain(job)).rounds
                    except KithError:
                        continue
                    if any(one.assigned.token.term > old.term for one in rounds):
                        took = time.monotonic() - began
                        await breaking
                        return took
            await asyncio.sleep(LOOK_S)
        await breaking
        raise NotInTime("nobody took over\n" + "\n".join(one.tail() for one in survivors))
    finally:
        for client in clients:
            await client.close()
