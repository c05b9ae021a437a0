"""Memory and start: what a node costs beside its model.

Two nodes on loopback with the echo engine. Memory is the proportional set size (shared pages are divided among those
who share them) of the daemon and its children except the engine: of the follower when the mesh has formed and is idle,
and of the leader with its solver process ready. `start_s` is from the start of the process until it answers at its own
door, median of five starts of a node alone.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from node.errors import ExitCode, KithError
from scripts.benches import pss_mb
from scripts.daemons import ENGINE, Daemon, end_all, formed, processes_of, until
from scripts.throwaway import ThrowawayMesh

STARTS = 5
READY_WITHIN_S = 60.0
#: Seconds of idleness before memory is read, and between the readings of which the median counts.
SETTLE_S = 3.0
READINGS = 5
OPTIONS = ["--engine", "echo", "--listen", "127.0.0.1:0", "--no-mdns"]


def figures() -> dict[str, float]:
    if not Path("/proc/self/smaps_rollup").exists():
        raise KithError("bench-impossible", "proportional set sizes need Linux", "run it there", ExitCode.UNAVAILABLE)
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        starts = [asyncio.run(_start(Path(folder) / f"start{number}")) for number in range(STARTS)]
        return {"start_s": round(statistics.median(starts), 3), **asyncio.run(_sizes(Path(folder)))}


async def _start(data_dir: Path) -> float:
    daemon = Daemon(data_dir, OPTIONS, name="start", mesh=ThrowawayMesh())
    daemon.start()
    try:
        await daemon.ready(READY_WITHIN_S, engine=False)
        return time.monotonic() - daemon.started_at
    finally:
        daemon.end()


async def _sizes(folder: Path) -> dict[str, float]:
    mesh = ThrowawayMesh()
    first = Daemon(folder / "a", OPTIONS, name="a", mesh=mesh)
    daemons = [first]
    first.start()
    try:
        at = (await first.ready(READY_WITHIN_S)).addresses[0]
        daemons.append(Daemon(folder / "b", [*OPTIONS, "--seed", f"{at.host}:{at.port}"], name="b", mesh=mesh))
        daemons[1].start()
        await daemons[1].ready(READY_WITHIN_S)
        leader = await formed(daemons)
        follower = next(one for one in daemons if one is not leader)

        async def solving() -> bool:
            return (await leader.status()).solver_state == "ready"

        await until(solving, READY_WITHIN_S, "the leader's solver ready")
        idle, leading = [], []
        for _ in range(READINGS):
            await asyncio.sleep(SETTLE_S)
            idle.append(_pss_mb(follower))
            leading.append(_pss_mb(leader))
    finally:
        wrong = end_all(daemons)
    assert not wrong, wrong
    return {
        "idle_rss_mb": round(statistics.median(idle), 1),
        "leader_rss_mb": round(statistics.median(leading), 1),
    }


def _pss_mb(daemon: Daemon) -> float:
    """Megabytes of the daemon and its children, the engine left out."""
    return sum(pss_mb(pid) for pid, command in processes_of(daemon.data_dir).items() if ENGINE not in command)
