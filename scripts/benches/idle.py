"""What a node costs that has nothing to do: CPU, wake-ups and memory of each of its processes.

A node alone in its mesh and a mesh of three, on loopback with echo engines, all up at once. In `KITH_BENCH_ROUNDS` (3)
windows of `KITH_BENCH_WINDOW_S` (60) seconds: `cpu_pct`, per cent of one core; `wakes_per_s`, how often a thread went
to sleep of its own accord; `mb`, the proportional set size. `alone`, `leader` and `follower` are the nodes; a
follower's figures are the mean of the two, and all are medians of the windows. The solver process is there from the
start of a leader until two minutes without a round.

`KITH_BENCH_BESIDE=DIR`: the same of another checkout, side by side in the same windows, and the ratios of this to it.
"""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.errors import ExitCode, KithError
from scripts.benches import cpu_s, pss_mb, size
from scripts.daemons import ENGINE, ROOT, SOLVER, Daemon, end_all, formed, processes_of
from scripts.throwaway import ThrowawayMesh

WINDOW_S = size("window_s", 60)
ROUNDS = size("rounds", 3)
BESIDE = os.environ.get("KITH_BENCH_BESIDE", "")
#: Until what a start and an election cause is over.
SETTLE_S = 15.0
READY_WITHIN_S = 120.0
OPTIONS = ["--engine", "echo", "--listen", "127.0.0.1:0", "--no-mdns"]

#: Checkout, node, process, what is measured.
Name = tuple[str, str, str, str]


@dataclass(frozen=True)
class _Node:
    checkout: str
    what: str
    daemon: Daemon


def figures() -> dict[str, float]:
    if not Path("/proc/self/smaps_rollup").exists():
        raise KithError("bench-impossible", "what processes cost is read from /proc", "run it on Linux", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        windows = asyncio.run(_windows(Path(folder)))
    found: dict[str, float] = {}
    for name in sorted(set().union(*windows)):
        checkout, *words = name
        other = ("beside", *name[1:])
        values = [window[name] for window in windows if name in window]
        found["_".join([*filter(None, [checkout]), *words])] = round(statistics.median(values), 3)
        if not checkout and words[-1] != "mb":
            ratios = [window[name] / window[other] for window in windows if window.get(other)]
            if ratios:
                found["_".join([*words, "ratio"])] = round(statistics.median(ratios), 3)
    return found


async def _windows(folder: Path) -> list[dict[Name, float]]:
    started: list[Daemon] = []
    try:
        nodes = await _nodes(folder / "this", "", ROOT, started)
        if BESIDE:
            nodes += await _nodes(folder / "beside", "beside", Path(BESIDE), started)
        await asyncio.sleep(SETTLE_S)
        return [await _window(nodes) for _ in range(ROUNDS)]
    finally:
        wrong = end_all(started)
        assert not wrong, wrong


async def _nodes(folder: Path, checkout: str, root: Path, started: list[Daemon]) -> list[_Node]:
    [alone] = await _mesh(folder / "alone", root, 1, started)
    three = await _mesh(folder / "three", root, 3, started)
    leader = await formed(three, READY_WITHIN_S)
    return [
        _Node(checkout, "alone", alone),
        *(_Node(checkout, "leader" if one is leader else "follower", one) for one in three),
    ]


async def _mesh(folder: Path, root: Path, count: int, started: list[Daemon]) -> list[Daemon]:
    mesh, daemons, seed = ThrowawayMesh(), list[Daemon](), list[str]()
    for number in range(count):
        name = f"n{number}"
        one = Daemon(folder / name, [*OPTIONS, *seed], name=name, environment={"PYTHONPATH": str(root)}, mesh=mesh)
        daemons.append(one)
        started.append(one)
        one.start()
        at = (await one.ready(READY_WITHIN_S)).addresses[0]
        seed = ["--seed", f"{at.host}:{at.port}"]
    return daemons


async def _window(nodes: Sequence[_Node]) -> dict[Name, float]:
    before = {}
    for node in nodes:
        node.daemon.must_run()
        for pid, command in processes_of(node.daemon.data_dir).items():
            before[pid] = (node, _process(command), cpu_s(pid), _wakes(pid), time.monotonic())
    await asyncio.sleep(WINDOW_S)
    seen = defaultdict[Name, list[float]](list)
    for pid, (node, process, cpu, wakes, began) in before.items():
        try:
            measured = {"cpu_pct": 100 * (cpu_s(pid) - cpu), "wakes_per_s": _wakes(pid) - wakes}
            mb = pss_mb(pid)
        except OSError:
            continue  # a solver that was idle for long
        for what, value in measured.items():
            seen[node.checkout, node.what, process, what].append(value / (time.monotonic() - began))
        seen[node.checkout, node.what, process, "mb"].append(mb)
    return {name: statistics.mean(values) for name, values in seen.items()}


def _process(command: str) -> str:
    return "engine" if ENGINE in command else "solver" if SOLVER in command else "daemon"


def _wakes(pid: int) -> int:
    """How often its threads went to sleep of their own accord; those that ended meanwhile are not in it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            rows = (task / "status").read_text().splitlines()
            total += next(int(row.split()[1]) for row in rows if row.startswith("voluntary_ctxt_switches:"))
    return total
