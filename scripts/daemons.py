"""Daemons as real processes: for the demonstration, the benches, the LAN and the tests.

A daemon enters the mesh that it is given before it starts, and speaks mTLS as any other; without one it is alone.

A daemon and its engine and solver children carry a mark in their environment. That is how children are found when
their parent is dead, and why none is left behind: `end` and `kill` return once all of them are gone, or say who is
left. Readiness is asked for at the daemon's own door, with a deadline.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mesh.wire import local_pb2, membership_pb2
from node.client import NodeClient
from node.errors import KithError
from scripts.throwaway import ThrowawayMesh

Value = TypeVar("Value")

ROOT = Path(__file__).resolve().parent.parent

#: How often a condition is looked at, seconds.
POLL_S = 0.03
#: From SIGTERM to the end of a daemon that drains, and from SIGKILL to the end of its children, seconds.
END_WITHIN_S = 20.0
CHILDREN_GONE_WITHIN_S = 5.0
#: Modules of the children.
ENGINE, SOLVER = "node.engine.child", "node.solver_child"
#: Lines of output shown when a daemon did not do what it should.
TAIL_LINES = 25
#: Environment variable that marks a daemon and its children; its value is the data directory.
MARK = "KITH_STARTED_FOR"


class NotInTime(AssertionError):
    """A daemon did not become what it should be before the deadline."""


def processes_of(data_dir: Path) -> dict[int, str]:
    """Living processes of the daemon that was started here with this data directory, by pid, with their command lines.

    Children inherit the mark in their environment, also those that lead groups and sessions of their own, and keep it
    when their parent is dead. Zombies do not live.
    """
    mark = f"{MARK}={data_dir}"
    found = {}
    if not Path("/proc/self/environ").exists():
        listing = subprocess.check_output(["ps", "-A", "-E", "-o", "pid=,stat=,command="], text=True)
        rows = [line.split(maxsplit=2) for line in listing.splitlines()]
        alive = [row for row in rows if len(row) == 3 and not row[1].startswith("Z")]
        return {int(pid): words[:200] for pid, _, words in alive if f" {mark} " in f"{words} "}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = words.strip()
        except (OSError, ValueError):
            continue  # it ended while we looked, or is another user's
    return found


async def until(probe: Callable[[], Awaitable[Value | None]], within_s: float, what: str) -> Value:
    """The first value of `probe` that is not None or False; `KithError` counts as not yet. Raises `NotInTime`."""
    deadline = time.monotonic() + within_s
    last: object = None
    while True:
        try:
            value = await probe()
            if value is not None and value is not False:
                return value
        except KithError as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTime(f"{what}: not within {within_s:g} s" + (f" ({last})" if last else ""))
        await asyncio.sleep(POLL_S)


@dataclass
class Daemon:
    """One `kith up`. Nothing runs until `start`."""

    data_dir: Path
    arguments: Sequence[str] = ()  # after `up`
    name: str = ""
    prefix: Sequence[str] = ()  # before the interpreter: `ip netns exec NAME`
    environment: Mapping[str, str] = field(default_factory=dict)  # beside our own
    entry: Sequence[str] = ("-m", "node.cli.main")  # what the interpreter runs as `kith`
    process: subprocess.Popen[bytes] | None = None
    mesh: ThrowawayMesh | None = None  # entered at the first start; None: as the data directory is
    adopted: int = 0  # pid of a daemon that another run started
    started_at: float = 0.0  # time.monotonic()

    @property
    def output(self) -> Path:
        """What the daemon prints: standard output and error."""
        return self.data_dir.with_name(self.data_dir.name + ".out")

    @property
    def pid(self) -> int:
        assert self.process is not None or self.adopted, "not started"
        return self.process.pid if self.process is not None else self.adopted

    @property
    def running(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return bool(self.adopted) and self.adopted in processes_of(self.data_dir)  # the pid may be another's by now

    def command(self) -> list[str]:
        named = ["--name", self.name] if self.name else []
        base = [sys.executable, "-P", *self.entry, "--data-dir", str(self.data_dir), "up"]
        return [*self.prefix, *base, *named, *self.arguments]

    def start(self) -> None:
        assert not self.running, "runs already"
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if self.mesh is not None:
            self.mesh.enrol(self.data_dir)
        self.started_at = time.monotonic()
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._surroundings(),
                start_new_session=True,
            )

    def _surroundings(self) -> dict[str, str]:
        # The checkout goes last on the path: where it is not installed, its packages are still found.
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
        return os.environ | {"PYTHONPATH": path} | dict(self.environment) | {MARK: str(self.data_dir)}

    def client(self) -> NodeClient:
        return NodeClient(self.data_dir)

    async def status(self) -> local_pb2.StatusReply:
        async with self.client() as client:
            return await client.status(timeout_s=2.0)

    async def nodes(self) -> list[local_pb2.NodeInfo]:
        async with self.client() as client:
            return await client.nodes()

    async def ready(self, within_s: float = 30.0, *, engine: bool = True) -> local_pb2.StatusReply:
        """Wait until the daemon answers, and its engine is ready unless told otherwise."""

        async def probe() -> local_pb2.StatusReply | None:
            self.must_run()
            now = await self.status()
            if engine and now.engine_state == "failed":
                raise NotInTime(f"{self.label}: engine failed: {now.engine_problem}\n{self.tail()}")
            return now if not engine or now.engine_state == "ready" else None

        try:
            return await until(probe, within_s, f"{self.label} ready")
        except NotInTime as late:
            raise NotInTime(f"{late}\n{self.tail()}") from None

    def must_run(self) -> None:
        """Raises `NotInTime` with the last output where the daemon has ended."""
        if not self.running:
            code = self.process.returncode if self.process else None
            raise NotInTime(f"{self.label} ended with {code}: {shlex.join(self.command())}\n{self.tail()}")

    @property
    def label(self) -> str:
        return self.name or self.data_dir.name

    def tail(self) -> str:
        """The last lines that the daemon printed and logged."""
        shown = []
        for path in (self.output, self.data_dir / "logs" / "kith.log"):
            if path.exists():
                lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
                shown.append("\n".join([f"--- {path}", *lines]))
        return "\n".join(shown)

    def send(self, signal_number: int) -> None:
        """A signal to the daemon alone."""
        if self.running:
            os.kill(self.pid, signal_number)

    def children(self, module: str) -> list[int]:
        """Pids of the living children that run this module: `node.engine.child`, `node.solver_child`."""
        words = f"-m {module} "
        return [pid for pid, command in processes_of(self.data_dir).items() if words in f"{command} "]

    def send_children(self, module: str, signal_number: int) -> int:
        """A signal to these children; to how many."""
        pids = self.children(module)
        for pid in pids:
            os.kill(pid, signal_number)
        return len(pids)

    def send_all(self, signal_number: int) -> None:
        """A signal to the daemon and its children: freezing and thawing a whole host."""
        for pid in processes_of(self.data_dir):
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue

    def end(self, within_s: float = END_WITHIN_S) -> None:
        """SIGTERM, wait, check that nothing is left. Raises `NotInTime` after killing what is left."""
        if not self.running:
            return self._gone("ended")
        self.send_all(signal.SIGCONT)  # one that was frozen could not hear the rest
        self.send(signal.SIGTERM)
        if not self._ended(within_s):
            tail = self.tail()
            self._kill_all()
            raise NotInTime(f"{self.label} did not end within {within_s:g} s of SIGTERM\n{tail}")
        return self._gone("ended")

    def kill(self) -> None:
        """SIGKILL to the daemon alone; its children must notice. Raises `NotInTime` after killing who did not."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self._gone("was killed")

    def _ended(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _gone(self, how: str) -> None:
        deadline = time.monotonic() + CHILDREN_GONE_WITHIN_S
        while left := processes_of(self.data_dir):
            if time.monotonic() > deadline:
                self._kill_all()
                raise NotInTime(f"{self.label} {how} and left behind: {left}")
            time.sleep(POLL_S)

    def _kill_all(self) -> None:
        self.send_all(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


async def formed(daemons: Sequence[Daemon], within_s: float = 30.0) -> Daemon:
    """Wait until each of these sees all of them alive, and all follow the same leader, one of them; that one.

    Raises `NotInTime` with what each sees.
    """
    seen: dict[str, str] = {}

    async def probe() -> Daemon | None:
        for one in daemons:
            one.must_run()
        answers = await asyncio.gather(*(one.status() for one in daemons), return_exceptions=True)
        views = await asyncio.gather(*(one.nodes() for one in daemons), return_exceptions=True)
        leaders = set()
        ids = {
            now.node_id: one for one, now in zip(daemons, answers, strict=True) if not isinstance(now, BaseException)
        }
        whole = len(ids) == len(daemons)
        for one, now, view in zip(daemons, answers, views, strict=True):
            if isinstance(now, BaseException) or isinstance(view, BaseException):
                seen[one.label] = f"{now if isinstance(now, BaseException) else view}"
                return None
            alive = {node.node_id for node in view if node.state == membership_pb2.MEMBER_STATE_ALIVE}
            seen[one.label] = f"{len(alive)} alive, leader {now.leader.leader_id[:8] or 'unknown'}"
            whole = whole and alive == ids.keys()
            leaders.add(now.leader.leader_id)
        return ids.get(leaders.pop()) if whole and len(leaders) == 1 else None

    try:
        return await until(probe, within_s, f"{len(daemons)} nodes formed")
    except NotInTime as late:
        raise NotInTime(f"{late}\n{seen}\n" + "\n".join(one.tail() for one in daemons)) from None


def end_all(daemons: Sequence[Daemon]) -> list[str]:
    """End all of them, side by side, whatever happens to one; what went wrong."""
    for daemon in daemons:
        daemon.send_all(signal.SIGCONT)
        daemon.send(signal.SIGTERM)
    wrong = []
    for daemon in daemons:
        try:
            daemon.end()
        except NotInTime as left:
            wrong.append(str(left))
    return wrong
