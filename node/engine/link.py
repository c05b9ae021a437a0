"""One spawned engine process and the conversation with it, from spawn to its last moment.

A `Link` lives as long as its child. When the stream ends, every open request fails: with `engine-gone` where it was the
only one, else with `engine-gone-shared`, for nobody knows which of them the child died of. `end` makes sure that the
process is gone and says how it went. Whoever holds the link decides what comes next (`process.py`).
"""

import asyncio
import contextlib
import os
import signal
import site
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import node
from mesh.standing import ENGINE_GONE, ENGINE_GONE_SHARED
from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine import frames
from node.engine.inbox import Inbox
from node.engine.watchdog import LOOK_S, REST_S, Verdict, Watchdog
from node.errors import KithError

#: Seconds that a child gets to end by itself, and again after SIGTERM.
END_SECONDS = 1.0

STDERR_LINES_QUOTED = 3
STDERR_LINES_KEPT = 20
STDERR_LINE_BYTES = 2000

_REMEDY = "The node starts it again by itself; repeat the request in a moment."


class Link:
    """Made by `spawn`. Not safe to use from another event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Callable[[str], None],
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log
        self._inboxes: dict[int, Inbox] = {}
        self._last_id = 0
        self._stirred = asyncio.Event()  # a request came, or the stream ended
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._hung = False
        self._reading = asyncio.create_task(self._read(), name="engine reader")
        self._listening = asyncio.create_task(self._listen(), name="engine stderr")

    @classmethod
    async def spawn(cls, config: NodeConfig, log: Callable[[str], None]) -> "Link":
        """Start a child. Raises `KithError` (`engine-failed`) when the system refuses."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _not_started(error) from error
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder named `node` where the daemon was started must not be imported
                "-m",
                "node.engine.child",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(config.threads),
                process_group=0,  # Ctrl-C in a terminal is for the daemon
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread to wait for it
            ours.close()
            raise _not_started(error) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException as error:  # also cancelled in between: the child must not be left behind
            ours.close()
            process.kill()
            await process.wait()
            if isinstance(error, OSError):
                raise _not_started(error) from error
            raise
        return cls(process, reader, writer, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def crashed_in_kernel(self) -> bool:
        """Did the child die of an instruction or address that the CPU refused?"""
        return self._process.returncode in (-signal.SIGSEGV, -signal.SIGILL, -signal.SIGBUS)

    @contextlib.contextmanager
    def open(self, command: engine_pb2.EngineCommand) -> Iterator[Inbox]:
        """Send a command; its events arrive in the inbox. Leaving early cancels it."""
        self._last_id += 1
        command.id = self._last_id
        inbox = self._inboxes[command.id] = Inbox(looks=command.WhichOneof("command") == "stats")
        if not inbox.looks:
            self._stirred.set()
        try:
            self._send(command)
            yield inbox
        finally:
            del self._inboxes[command.id]
            if not inbox.ended or inbox.overflowed:
                cancel = engine_pb2.CancelRequest(target_id=command.id)
                self._send(engine_pb2.EngineCommand(cancel=cancel))

    async def ask(self, command: engine_pb2.EngineCommand) -> engine_pb2.EngineEvent:
        """A command with a single answer."""
        with self.open(command) as inbox:
            return await inbox.get()

    def _send(self, command: engine_pb2.EngineCommand) -> None:
        if self._reading.done() or self._writer.is_closing():
            if inbox := self._inboxes.get(command.id):
                inbox.fail(KithError(ENGINE_GONE, "the engine process is gone", _REMEDY))
            return
        try:
            self._writer.write(frames.encode(command))
        except frames.FrameError as error:
            raise KithError("prompt-too-long", f"the request is too large: {error}", "Send less text.") from error

    async def _read(self) -> None:
        """Until the stream ends or the child breaks the protocol; then every open request fails."""
        try:
            while (event := await frames.read_frame(self._reader, engine_pb2.EngineEvent)) is not None:
                if inbox := self._inboxes.get(event.id):
                    inbox.put(event)
        except frames.FrameError as error:
            self._log(f"engine: {error}")
        finally:
            self._fail_all()
            self._stirred.set()

    def _fail_all(self) -> None:
        shared = sum(not (inbox.ended or inbox.looks) for inbox in self._inboxes.values()) > 1
        code = ENGINE_GONE_SHARED if shared else ENGINE_GONE
        message = "the engine process ended during this request" + (" and others" if shared else "")
        for inbox in self._inboxes.values():
            inbox.fail(KithError(code, message, _REMEDY))

    async def _listen(self) -> None:
        """The child's stderr, line by line, into the log."""
        assert self._process.stderr is not None
        rest = b""
        while block := await self._process.stderr.read(STDERR_LINE_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > STDERR_LINE_BYTES:
                lines.append(rest)
                rest = b""
            for line in lines:
                self._heard(line)
        if rest:
            self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line[:STDERR_LINE_BYTES].decode("utf-8", "replace").strip()
        if text:
            self._stderr.append(text)
            self._log(f"engine: {text}")

    async def watch(self, watchdog: Watchdog, on_verdict: Callable[[Verdict, engine_pb2.EngineStats], None]) -> None:
        """Return when the child is gone or hung. Meanwhile `on_verdict` hears how it is, and its last figures."""
        clock = asyncio.get_running_loop().time
        stats = engine_pb2.EngineStats()
        asking: asyncio.Future[engine_pb2.EngineEvent] | None = None
        try:
            while not self._reading.done():
                if asking is None:
                    asking = asyncio.ensure_future(self.ask(engine_pb2.EngineCommand(stats=engine_pb2.StatsRequest())))
                either: set[asyncio.Future[Any]] = {self._reading, asking}
                await asyncio.wait(either, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                answered = asking.done() and asking.exception() is None
                if answered:
                    stats = asking.result().stats
                if asking.done():
                    asking = None
                busy = bool(stats.slots_busy or stats.queue_length)
                verdict = watchdog.look(clock(), answered, busy, stats.steps, stats.preparing > 0, stats.prepared)
                on_verdict(verdict, stats)
                if verdict is Verdict.HUNG:
                    self._hung = True
                    return
                if asking is None and (busy or stats.preparing or not await self._rested()):
                    await asyncio.wait([self._reading], timeout=LOOK_S)
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _rested(self) -> bool:
        """Wait while nobody asks the child for anything; whether that was so for `REST_S`."""
        self._stirred.clear()
        if self._reading.done() or not all(inbox.looks for inbox in self._inboxes.values()):
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                await self._stirred.wait()
        return not self._stirred.is_set()

    async def end(self) -> KithError:
        """Make the child go, by closing the stream, then SIGTERM, then SIGKILL; returns how it went.

        Open requests fail. Shielded: a cancelled caller still leaves nothing behind.
        """
        return await asyncio.shield(asyncio.ensure_future(self._end()))

    async def _end(self) -> KithError:
        self._writer.close()
        grace = 0.0 if self._hung else END_SECONDS
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                with contextlib.suppress(ProcessLookupError):
                    stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace if stop != self._process.kill else None):
                    await self._process.wait()
                break
        await asyncio.gather(self._reading, self._listening, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return KithError(ENGINE_GONE, self._obituary(), _REMEDY)

    def _obituary(self) -> str:
        code = self._process.returncode
        if self._hung:
            how = "made no progress and was killed"
        elif code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return self._quoted(f"was killed by {signal.Signals(-code).name}")
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with status {code}"
        return self._quoted(how)

    def _quoted(self, how: str) -> str:
        lines = list(self._stderr)[-STDERR_LINES_QUOTED:]
        return f"The engine process {how}." + (f" Its last words: {' | '.join(lines)}" if lines else "")


class NotStarted(KithError):
    """The system had no memory, process or file for a child: that passes, and says nothing of the model."""


def _not_started(error: OSError | RuntimeError) -> NotStarted:
    message = f"the engine process can not be started: {getattr(error, 'strerror', None) or error}"
    return NotStarted("engine-failed", message, "Free some memory, processes or open files, then try again.")


def child_environment(threads: int) -> dict[str, str]:
    """The child's environment: this process's, with OpenMP told not to spin and the packages' folder on the path.

    OpenMP threads that spin at barriers starve each other as soon as two engines share a machine (measured: 3 tokens/s
    instead of 125). A short spin keeps an engine alone on its machine fast and lets several share one.
    """
    environment = dict(os.environ)
    if threads != 1:
        environment.setdefault("GOMP_SPINCOUNT", "2000")
    root = str(Path(node.__file__).resolve().parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        # Not installed: a checkout. Its folder goes last, so that it shadows nothing.
        given = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{given}{os.pathsep}{root}" if given else root
    return environment
