"""The engine process: `python -m node.engine.child FD`, where FD is its end of a socket pair with the daemon.

It reads model files of strangers with a C++ library, so it gets less than a program gets: no core dumps (they would
hold prompts), no files of its own, few descriptors, no way to more privileges, and for private memory a limit that the
daemon computes. That limit is RLIMIT_DATA: RLIMIT_AS would count the mapped model too, and the reserved addresses of
libraries. CPU time has no limit, for an engine lives for months; the watchdog ends one that does not move.

It is killable, and never outlives its daemon: the kernel kills it when the daemon dies (Linux), and the end of the
stream ends it at once, whatever its other threads do. The first command is `load`; its answer is `loaded` or a
problem. Commands after it are answered as each back end can.

Threads: this module's main thread reads and does nothing else; a worker hands requests to the back end; the back end
has threads of its own. The figures say of both whether they get on, so that the daemon sees where one hangs. Not
guaranteed: an orderly end. Nothing here is worth saving.
"""

import ctypes
import faulthandler
import os
import queue
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

from mesh.wire import engine_pb2
from node import gguf
from node.engine import frames
from node.engine.backend import REQUESTS_MAX, Backend, Outbox, Request, at_end, broke, cancelled
from node.engine.installed import installed
from node.errors import KithError

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
#: Files and sockets that the process may have open.
DESCRIPTORS_MAX = 512


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which then ends this process
    _die_with_parent()
    _give_up_rights()
    faulthandler.enable(all_threads=False)  # says where a crash was, in frames only, on stderr
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(True)
    try:
        _Child(sock).run()
        for ending in at_end:
            ending()
    except frames.FrameError as error:
        print(f"the daemon sent nonsense: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _die_with_parent() -> None:
    """Linux: SIGKILL when the thread that made this process ends. Elsewhere the end of the stream has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _give_up_rights() -> None:
    """What no engine needs. Threat: a model file that takes over this process."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, DESCRIPTORS_MAX)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _lower(what: int, limit: int) -> None:
    """Set a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(what)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(what, (most, most))


def make_backend(load: engine_pb2.LoadModel, outbox: Outbox) -> Backend:
    """Imports only what this back end needs."""
    name = load.backend
    if not installed(name):
        remedy = "kith doctor says what to install."
        raise KithError("engine-failed", f"the library of the engine {name} is not installed", remedy)
    if name == "llama":
        if gguf.read_header(Path(load.path)).embeds_only:
            from node.engine.embedder_backend import EmbedderBackend

            return EmbedderBackend(outbox)
        from node.engine.llama_backend import LlamaBackend

        return LlamaBackend(outbox)
    if name == "echo":
        from node.engine.echo import EchoBackend

        return EchoBackend()
    if name == "openai":
        from node.engine.openai import OpenaiBackend

        return OpenaiBackend()
    if name == "xllamacpp":
        from node.engine.xllamacpp import XllamacppBackend

        return XllamacppBackend()
    raise KithError("bad-request", f"there is no engine named {name!r}", "Use llama, xllamacpp, openai or echo.")


class _Child:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._outbox = Outbox(self._send)
        self._requests: dict[int, Request] = {}  # alive; written by the reader, removed from by any thread
        self._work: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._backend: Backend | None = None
        self._taken = 0  # requests that the worker was given; written by the reader
        self._prepared = 0  # those that it is done with; written by the worker

    def run(self) -> None:
        """Until the stream ends."""
        threading.Thread(target=self._serve, name="worker", daemon=True).start()
        while (command := frames.receive_frame(self._sock, engine_pb2.EngineCommand)) is not None:
            self._take(command)

    def _take(self, command: engine_pb2.EngineCommand) -> None:
        kind = command.WhichOneof("command")
        if kind == "cancel":
            target = self._requests.get(command.cancel.target_id)
            if target is not None:
                target.cancelled = True
                if self._backend is not None:
                    self._backend.wake()
            return
        request = Request(command, self._outbox, self._forget)
        if kind == "stats" and self._backend is not None:
            stats = self._backend.stats()
            stats.prepared = self._prepared
            stats.preparing = self._taken - stats.prepared
            request.answer(engine_pb2.EngineEvent(stats=stats))
        elif kind is None or kind == "stats":
            request.fail(KithError("bad-request", "the engine process does not know this command", ""))
        elif len(self._requests) >= REQUESTS_MAX:
            request.fail(KithError("busy", f"{REQUESTS_MAX} requests are already open", "Try again later."))
        else:
            self._requests[request.id] = request
            self._taken += 1
            self._work.put(request)

    def _forget(self, request_id: int) -> None:
        self._requests.pop(request_id, None)

    def _serve(self) -> None:
        """The worker: one request after the other goes to the back end."""
        while True:
            request = self._work.get()
            try:
                self._serve_one(request)
            except KithError as error:
                request.fail(error)
            except Exception as error:
                request.fail(broke(error))
            self._prepared += 1

    def _serve_one(self, request: Request) -> None:
        if request.command.WhichOneof("command") == "load":
            load = request.command.load
            if load.gpu_layers == 0:
                _lower(resource.RLIMIT_FSIZE, 0)  # GPU libraries keep compiled kernels in files
            if load.memory_limit_bytes:
                # Private memory, not the mapped model file. Allocations beyond it fail, which ends the process.
                _lower(resource.RLIMIT_DATA, load.memory_limit_bytes)
            backend = make_backend(load, self._outbox)
            loaded = backend.load(load)
            self._backend = backend
            request.answer(engine_pb2.EngineEvent(loaded=loaded))
        elif request.cancelled:
            request.fail(cancelled())
        elif self._backend is None:
            request.fail(KithError("engine-not-ready", "no model is loaded yet", "Wait until the node is ready."))
        else:
            self._backend.submit(request)

    def _send(self, block: bytes) -> None:
        try:
            self._sock.sendall(block)
        except OSError:  # the daemon is gone; there is nobody left to tell
            os._exit(0)


if __name__ == "__main__":
    main()
