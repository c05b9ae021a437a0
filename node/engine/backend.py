"""What runs inside the engine process: one `Backend` behind a reader of commands and an outbox of events.

A `Request` is a command that is being answered. It is made by the reader when the command arrives, carries the
`cancelled` flag that a back end looks at between its steps, and takes care that exactly one last event is sent.

Threads: the reader makes requests and sets `cancelled`; one worker calls `submit`; a back end replies from any thread.
"""

import sys
import threading
import traceback
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from mesh.wire import common_pb2, engine_pb2
from node.engine import frames
from node.engine.api import Asked
from node.errors import ExitCode, KithError

#: Most requests alive at once. Threat: a client that opens streams without end fills the child's memory.
REQUESTS_MAX = 256

#: What an orderly end of the process still has to do: milliseconds of work, such as removing a socket.
at_end: list[Callable[[], None]] = []

P = ParamSpec("P")
T = TypeVar("T")


class Outbox:
    """Events on their way to the daemon. `put` from any thread; `flush` writes all that waits in one call."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []

    def put(self, event: engine_pb2.EngineEvent) -> None:
        frame = frames.encode(event)
        with self._lock:
            self._waiting.append(frame)

    def flush(self) -> None:
        with self._lock:  # held while sending: frames must not interleave
            if self._waiting:
                block = b"".join(self._waiting)
                self._waiting.clear()
                self._send(block)


class Request:
    """A command that is being answered. Invariant: nothing is sent after its last event."""

    def __init__(self, command: engine_pb2.EngineCommand, outbox: Outbox, ended: Callable[[int], None]) -> None:
        self.id: int = command.id
        self.command = command
        self.cancelled = False  # set by the reader, never taken back
        self.over = False
        self._outbox = outbox
        self._ended = ended

    @property
    def asked(self) -> Asked:
        """What says on whose behalf it is and how urgent. Commands that wait in no queue say nothing of it."""
        match self.command.WhichOneof("command"):
            case "score":
                return self.command.score
            case "embed":
                return self.command.embed
            case _:
                return self.command.generate

    def put(self, event: engine_pb2.EngineEvent, last: bool = False) -> None:
        """Queue one event; the caller flushes. `last` ends the request."""
        if self.over:
            return
        event.id = self.id
        self._outbox.put(event)
        if last:
            self.over = True
            self._ended(self.id)

    def flush(self) -> None:
        self._outbox.flush()

    def answer(self, event: engine_pb2.EngineEvent) -> None:
        """The only or last event, sent at once."""
        self.put(event, last=True)
        self.flush()

    def fail(self, error: KithError) -> None:
        self.answer(engine_pb2.EngineEvent(problem=error.to_wire()))

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        started = engine_pb2.GenerateEvent.Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)
        self.put(engine_pb2.EngineEvent(generate=engine_pb2.GenerateEvent(started=started)))

    def delta(self, text: str, tokens: int) -> None:
        self.put_delta(engine_pb2.GenerateEvent.Delta(text=text, tokens=tokens))

    def put_delta(self, delta: engine_pb2.GenerateEvent.Delta) -> None:
        self.put(engine_pb2.EngineEvent(generate=engine_pb2.GenerateEvent(delta=delta)))

    def finished(self, reason: str, usage: common_pb2.Usage) -> None:
        finished = engine_pb2.GenerateEvent.Finished(reason=reason, usage=usage)
        self.put(engine_pb2.EngineEvent(generate=engine_pb2.GenerateEvent(finished=finished)), last=True)


class Backend(Protocol):
    """What turns prompts into tokens. Made by `child.make_backend`; lives as long as the process."""

    def load(self, command: engine_pb2.LoadModel) -> engine_pb2.EngineLoaded:
        """Get ready to work; called once, before anything else. Raises `KithError`."""

    def submit(self, request: Request) -> None:
        """Take a generate, score, count_tokens or calibrate request and answer it, now or later. Raises `KithError`,
        which becomes its answer."""

    def wake(self) -> None:
        """A request was cancelled: look at the flags soon. Called by the reader; must not block."""

    def stats(self) -> engine_pb2.EngineStats:
        """Figures of now. Called by the reader; must not block."""


def cancelled() -> KithError:
    """How a request ends that was cancelled and has no other way to say so."""
    return KithError("cancelled", "the request was cancelled")


def too_late() -> KithError:
    """How a request ends that was not begun while it was of use."""
    return KithError("too-late", "the request waited longer than it was useful", "Ask with more time.")


def queue_full(most: int) -> KithError:
    """How a request ends where so many wait already."""
    return KithError("busy", f"{most} requests already wait for this engine", "Try again later.")


def broke(error: BaseException) -> KithError:
    """How a request ends in which something failed that nobody expected. Logs where, without the error's message: it
    could quote a prompt."""
    frames_text = "".join(traceback.format_tb(error.__traceback__))
    print(f"{type(error).__name__} at\n{frames_text}", file=sys.stderr, flush=True)
    what = f"the engine process failed inside ({type(error).__name__})"
    return KithError("engine-failed", what, "The node's log says where; please report it.")


class Failing(Protocol):
    """What can end without an answer."""

    def fail(self, error: KithError) -> None: ...


def guarded(work: Failing, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Call what is the work's own; an error ends the work, and nothing else. None then."""
    try:
        return what(*args, **kwargs)
    except KithError as error:
        work.fail(error)
    except Exception as error:
        work.fail(broke(error))
    return None


def embeds_only(what: str) -> KithError:
    """What a model that is made for vectors can not do, whatever the back end."""
    message = f"this model makes vectors of texts; it can not {what}"
    return KithError("agent-refused", message, "Name a model that writes.", ExitCode.BAD_INPUT)


def unsupported(backend: str, what: str) -> KithError:
    """What this back end can not do and another one may."""
    message = f"the {backend} engine can not {what}"
    return KithError("agent-refused", message, "Use --engine llama for this.", ExitCode.BAD_INPUT)
