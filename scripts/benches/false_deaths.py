"""False deaths: eight nodes on a network that loses frames; who is called dead that lives, and how soon the dead are.

Each share of loss, in per cent of all frames each way between every two hosts, holds for 60 s; all processes live.
`false_deaths` counts the times that a member was dead in somebody's view, at 0, 5 and 10 %, by every node's log from
the beginning of the loss until all are in all views again. The views are read every 0.2 s too, and the larger of the
two counts: between two looks a member can be called dead and deny it. `false_deaths_30` is the same at 30 %, where TCP
stalls for seconds; `absence_30_s_max` is the longest time that a member was dead in a view then (by the looks, cut off
by the end), and `rejoin_30_s` the time from the end of the loss until all are in all views. A job is handed in at the
beginning of each share: `jobs_lost` counts those that do not complete everywhere.

Detection, seven observers, eight nodes: until the last of them calls the node dead. `detect_s`: SIGKILL to its daemon.
`detect_cut_s`: its host is cut off without a reset, from the first rule on. Six times each. Yardstick: memberlist's LAN
constants take 5.2 to 6.4 s for kill -9.
"""

import asyncio
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from mesh.wire import membership_pb2
from node.client import NodeClient
from node.errors import KithError
from scripts import workload
from scripts.benches import size
from scripts.daemons import Daemon, NotInTime, formed
from scripts.lan_hosts import Lan

HOSTS = size("hosts", 8)
SECONDS = size("seconds", 60)
DETECTIONS = size("detections", 6)
PACE = {"KITH_ECHO_TOKENS_PER_S": "60"}
PIECES = 16
LOOK_S = 0.2
FORMED_WITHIN_S = 90.0
DETECTED_WITHIN_S = 60.0
#: Between two looks while a death is waited for, seconds.
DETECT_LOOK_S = 0.05
DEAD = membership_pb2.MEMBER_STATE_DEAD
#: What a daemon logs when a member is dead to it (mesh/roster.py).
DEATH_LOGGED = re.compile(r" INFO +.+ is dead: ")


def figures() -> dict[str, float]:
    with Lan.create(HOSTS, ["--engine", "echo"], environment=PACE) as lan:
        lan.start()
        return asyncio.run(_measure(lan))


async def _measure(lan: Lan) -> dict[str, float]:
    everyone = list(lan.daemons.values())
    await workload.up(everyone, FORMED_WITHIN_S)
    jobs: list[workload.Job] = []
    found: dict[str, float] = {"false_deaths": 0}
    for percent in (0, 5, 10, 30):
        deaths, longest, rejoined = await _lossy(lan, everyone, percent, jobs)
        print(f"  {percent} %: {deaths} false deaths, longest {longest:.1f} s", file=sys.stderr, flush=True)
        if percent < 30:
            found["false_deaths"] += deaths
        else:
            found |= {
                "false_deaths_30": deaths,
                "absence_30_s_max": round(longest, 2),
                "rejoin_30_s": round(rejoined, 2),
            }
    killed = [await _detect(lan, everyone, lan.kill, lan.start) for _ in range(DETECTIONS)]
    cut = [
        await _detect(lan, everyone, lambda host: lan.isolate(host), lambda _: lan.heal()) for _ in range(DETECTIONS)
    ]
    await workload.up(everyone, FORMED_WITHIN_S)
    lost = await workload.not_completed(everyone, jobs, 60.0)
    return found | {
        "detect_s_p50": round(statistics.median(killed), 2),
        "detect_s_max": round(max(killed), 2),
        "detect_cut_s_p50": round(statistics.median(cut), 2),
        "detect_cut_s_max": round(max(cut), 2),
        "jobs_lost": len(lost),
        "nodes": HOSTS,
        "seconds": SECONDS,
        "detections": DETECTIONS,
    }


class Views:
    """What every node holds for dead, looked at over connections that stay open."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = daemons
        self._clients: list[NodeClient] = []

    async def __aenter__(self) -> "Views":
        self._clients = [daemon.client() for daemon in self._daemons]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()

    async def dead(self) -> set[tuple[str, str]]:
        """Pairs of who sees and who is dead there. Raises `KithError`."""
        views = await asyncio.gather(*(client.nodes() for client in self._clients))
        return {
            (daemon.label, node.node_id)
            for daemon, view in zip(self._daemons, views, strict=True)
            for node in view
            if node.state == DEAD
        }


def deaths_logged(daemons: Sequence[Daemon]) -> int:
    """How often a member was dead to one of these, by their logs: as far as they were kept, files of 5 MiB."""
    logs = [path for daemon in daemons for path in (daemon.data_dir / "logs").glob("kith.log*")]
    return sum(len(DEATH_LOGGED.findall(path.read_text(encoding="utf-8", errors="replace"))) for path in logs)


async def _lossy(
    lan: Lan, everyone: Sequence[Daemon], percent: float, jobs: list[workload.Job]
) -> tuple[int, float, float]:
    """False deaths, the longest of them, and seconds from the end of the loss until the mesh is whole."""
    await workload.up(everyone, FORMED_WITHIN_S)
    since: dict[tuple[str, str], float] = {}
    deaths, longest, logged_before = 0, 0.0, deaths_logged(everyone)
    submitting: asyncio.Task[workload.Job] | None = None
    async with Views(everyone) as views:
        lan.lose(percent)
        began = now = time.monotonic()
        try:
            while now - began < SECONDS:
                if submitting is None:
                    submitting = asyncio.create_task(workload.submit_somewhere(everyone, PIECES, f"loss{percent}-"))
                dead = await views.dead()
                now = time.monotonic()
                for pair in dead - since.keys():
                    deaths += 1
                    since[pair] = now
                for pair in since.keys() - dead:
                    longest = max(longest, now - since.pop(pair))
                await asyncio.sleep(LOOK_S)
            longest = max([longest, *(now - then for then in since.values())])
        finally:
            lan.lose(0)
    ended_at = time.monotonic()
    await formed(everyone, FORMED_WITHIN_S)
    rejoined = time.monotonic() - ended_at
    deaths = max(deaths, deaths_logged(everyone) - logged_before)
    assert submitting is not None
    jobs.append(await submitting)
    await workload.ended(everyone[0], jobs[-1], 120.0)
    return deaths, longest, rejoined


async def _detect(
    lan: Lan, everyone: Sequence[Daemon], break_: Callable[[str], None], mend: Callable[[str], None]
) -> float:
    """Seconds until all others call a node dead that was broken so; it is mended afterwards."""
    leader = await workload.up(everyone, FORMED_WITHIN_S)
    victim = next(one for one in everyone if one is not leader)
    victim_id = (await victim.status()).node_id
    others = [one for one in everyone if one is not victim]
    async with Views(others) as views:
        await views.dead()  # connected before the clock runs
        began = time.monotonic()
        breaking = asyncio.create_task(asyncio.to_thread(break_, victim.name))
        waiting = {one.label for one in others}
        while waiting:
            try:
                waiting -= {label for label, node_id in await views.dead() if node_id == victim_id}
            except KithError as error:
                raise NotInTime(f"an observer does not answer: {error}") from error
            took = time.monotonic() - began
            if took > DETECTED_WITHIN_S:
                raise NotInTime(f"not dead in the views of {waiting} after {took:.0f} s")
            await asyncio.sleep(DETECT_LOOK_S)
        await breaking
    mend(victim.name)
    return took
