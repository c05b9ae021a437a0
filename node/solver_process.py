"""The solver as the daemon sees it: a child process that is there while a leader needs it, and greedy while it is not.

    stopped ──start()──▶ starting ──ready frame──▶ ready ──idle_s without a round, or stop()──▶ stopped
                             ▲                       │
                             └─ dies, hangs, or breaks the protocol: ended, and started again after a pause

A round never waits for the process to start and never fails: without a ready process, or where that takes longer than
`limit_s`, the labelled greedy allocation is the answer, with the reason in `method_reason`. The child has no state, so
it is ended by SIGKILL and nothing is lost.

Not guaranteed: that two rounds in a row are solved by the same method.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from logging import Logger
from pathlib import Path
from typing import Literal

from node import solver_wire
from solver import greedy
from solver.allocation import Allocation
from solver.costs import AgentLoad, TaskNeed

State = Literal["stopped", "starting", "ready"]

#: Longest solve, seconds; then the process is ended. HiGHS' own limit is a little less.
LIMIT_S = 5.0
#: Seconds without a round after which the process is stopped and its memory given back.
IDLE_S = 120.0
#: Longest start, seconds: an import from a slow card on a busy single-board computer.
START_LIMIT_S = 120.0
#: Pause before the n-th start in a row after a failure, seconds: doubles from the first to the last. Bounds the CPU
#: that a broken installation can burn.
RESTART_PAUSE_S_MIN, RESTART_PAUSE_S_MAX = 0.5, 60.0
#: Pairs above which greedy runs in a thread, so that the event loop is not held up.
INLINE_PAIRS_MAX = 500
#: Bytes of the child's standard error that are kept for the log.
LAST_WORDS_BYTES = 2000

_STOPPED = "the solver process is stopped"
_STARTING = "the solver process is starting"


class SolverProcess:
    """One child process at most. Use from one event loop."""

    def __init__(self, log: Logger, *, limit_s: float = LIMIT_S, idle_s: float = IDLE_S) -> None:
        self._log = log
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._state: State = "stopped"
        self._why_not_ready = _STOPPED
        self._process: asyncio.subprocess.Process | None = None
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None  # invariant: set while ready
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # ready, or the last start failed
        self._broken = asyncio.Event()  # the running child is of no more use
        self._turn = asyncio.Lock()  # one round at a time
        self._ending = False  # stop() runs: nothing is started
        self._idle: asyncio.TimerHandle | None = None
        self._idle_stop: asyncio.Task[None] | None = None
        self._failures = 0  # in a row
        self._last_id = 0
        self._start_s = 0.0

    @property
    def state(self) -> State:
        return self._state

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def start_s(self) -> float:
        """Seconds from the child's first line to ready, at its latest start; 0.0 before."""
        return self._start_s

    async def start(self) -> None:
        """Begin to start the child and return at once; does nothing where it runs."""
        if self._ending:
            return
        self._rest()
        if self._supervisor is None:
            self._state, self._why_not_ready = "starting", _STARTING
            self._settled.clear()
            self._supervisor = asyncio.create_task(self._supervise(), name="solver-process")

    async def wait_ready(self, timeout_s: float = START_LIMIT_S) -> bool:
        """Wait until the child is ready or its start has failed; whether it is ready."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        return self._state == "ready"

    async def allocate(self, agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed]) -> Allocation:
        """The round, by the child where it is ready, else greedy. Starts a child that is stopped."""
        await self.start()
        if self._state != "ready":
            return await self._greedy(agents, tasks, self._why_not_ready)
        async with self._turn:
            try:
                async with asyncio.timeout(self._limit_s):
                    return await self._ask(agents, tasks)
            except TimeoutError:
                self._give_up(f"the solver took longer than {self._limit_s:g} s and is started again")
            except (solver_wire.WireError, ConnectionError) as error:
                self._give_up(f"{error} and is started again")
            except _Unsolved as error:
                return await self._greedy(agents, tasks, str(error))
            finally:
                self._rest()
        return await self._greedy(agents, tasks, self._why_not_ready)

    async def stop(self) -> None:
        """End the child and wait until it is gone."""
        self._ending = True
        self._state, self._why_not_ready = "stopped", _STOPPED
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        if (process := self._process) is not None:
            # It was being waited for just when the supervisor was cancelled.
            await process.wait()
            self._process = None
        self._failures = 0
        self._settled.set()
        self._ending = False

    async def _ask(self, agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed]) -> Allocation:
        if self._link is None:
            raise ConnectionError("the solver process ended")
        reader, writer = self._link
        self._last_id += 1
        number = self._last_id
        try:
            frame = solver_wire.encode({"id": number, **solver_wire.round_to_json(agents, tasks)})
        except solver_wire.WireError as error:
            raise _Unsolved(str(error)) from error
        writer.write(frame)
        await writer.drain()
        reply = await solver_wire.read(reader)
        if reply is None:
            raise ConnectionError("the solver process ended")
        if reply.pop("id", None) != number:
            raise solver_wire.WireError("the solver process answered another question")
        if "problem" in reply:
            raise _Unsolved(str(reply["problem"]))
        allocation = solver_wire.allocation_from_json(reply)
        self._failures = 0
        return allocation

    async def _greedy(self, agents: Sequence[AgentLoad], tasks: Sequence[TaskNeed], reason: str) -> Allocation:
        began = time.perf_counter()
        if len(agents) * len(tasks) <= INLINE_PAIRS_MAX:
            result = greedy.allocate(agents, tasks, reason)
        else:
            result = await asyncio.to_thread(greedy.allocate, agents, tasks, reason)
        return replace(result, solve_seconds=time.perf_counter() - began)

    def _give_up(self, why: str) -> None:
        """The running child is of no more use: the supervisor ends it and starts another."""
        if self._state == "ready":
            self._log.warning("solver: %s", why)
            self._state, self._why_not_ready = "starting", why
            self._settled.clear()
        self._broken.set()

    def _rest(self) -> None:
        """Count the idle time from now."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if self._ending else asyncio.get_running_loop().call_later(self._idle_s, self._on_idle)

    def _on_idle(self) -> None:
        if self._turn.locked():
            self._rest()
            return
        self._idle = None
        self._log.info("solver: stopped after %g s without a round", self._idle_s)
        self._idle_stop = asyncio.create_task(self.stop(), name="solver-idle-stop")

    async def _supervise(self) -> None:
        """Keep one child running until cancelled."""
        while True:
            self._broken.clear()
            try:
                await self._run_child()
            except (OSError, RuntimeError, solver_wire.WireError, _StartFailed) as error:  # RuntimeError: no thread
                self._why_not_ready = f"the solver process did not start: {error}"
                self._log.warning("solver: %s", self._why_not_ready)
                self._settled.set()
            self._failures += 1
            await asyncio.sleep(min(RESTART_PAUSE_S_MIN * 2.0 ** min(self._failures - 1, 16), RESTART_PAUSE_S_MAX))
            self._settled.clear()

    async def _run_child(self) -> None:
        """Start one child, serve until it is of no more use, and end it. Raises where it does not get ready."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "node.solver_child", str(theirs.fileno()), str(os.getpid())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=_child_environment(),
                start_new_session=True,
            )
            theirs.close()
            assert process.stderr is not None
            listener = asyncio.create_task(_last_words(process.stderr), name="solver-last-words")
            writer: asyncio.StreamWriter | None = None
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
                ready = await self._serve(process, reader, writer)
            finally:
                self._link = None
                if process.returncode is None:
                    # Not process.kill(): that reaps a child that is dead already, and its exit status is lost.
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                if writer is not None:
                    writer.close()
                await process.wait()
                words = await listener
                self._process = None
            end = _death(process.returncode, words)
            if not ready:
                raise _StartFailed(end)
            self._log.warning("solver: process %d ended: %s", process.pid, end)
            self._give_up(f"the solver process ended ({end}) and is started again")

    async def _serve(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Wait for the child to get ready, then until it is of no more use. False: it never got ready."""
        try:
            async with asyncio.timeout(START_LIMIT_S):
                hello = await solver_wire.read(reader)
        except TimeoutError:
            raise _StartFailed(f"not ready after {START_LIMIT_S:g} s") from None
        if hello is None:
            return False
        self._start_s = float(hello["start_s"])
        self._log.info("solver: %s ready after %.1f s", hello["ready"], self._start_s)
        self._link = (reader, writer)
        self._state, self._why_not_ready = "ready", ""
        self._settled.set()
        ends = [asyncio.create_task(process.wait()), asyncio.create_task(self._broken.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        return True


class _Unsolved(Exception):
    """The programme was not solved; the child is well."""


class _StartFailed(Exception):
    """The child ended, or took too long, before it was ready."""


def _child_environment() -> dict[str, str]:
    """The daemon's own, with the folder that these packages were imported from first on the path."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path}


async def _last_words(stream: asyncio.StreamReader) -> str:
    """The last non-empty line of `stream`, read to its end; a traceback's is its error."""
    kept = b""
    while part := await stream.read(4096):
        kept = (kept + part)[-LAST_WORDS_BYTES:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _death(returncode: int | None, words: str) -> str:
    cause = f"signal {-returncode}" if returncode is not None and returncode < 0 else f"exit code {returncode}"
    return f"{cause}: {words}" if words else cause
