"""What every test may use, and what every test is held to: it leaves no process and no thread behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from scripts.daemons import Daemon

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run in the background inherits a deaf SIGINT, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: How long what a test started may take to go away after it, seconds.
GONE_WITHIN_S = 5.0

#: Threads that live as long as the process: gRPC's poller and event handlers, the executors of libraries, the loop of
#: node/blocking.py.
LASTING_THREADS = ("asyncio_", "kithmesh", "Thread-poll", "grpc", "pytest_timeout", "tqdm", "_poll_wrapper", "Main")


def _children() -> dict[int, str]:
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            # The resource tracker of multiprocessing serves the whole run.
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in command:
                found[child.pid] = command or child.name()
        except psutil.NoSuchProcess:
            continue
    return found


def _threads() -> dict[int, str]:
    running = [thread for thread in threading.enumerate() if thread.ident is not None]
    return {
        thread.ident: thread.name
        for thread in running
        if thread.ident is not None and not any(word in thread.name for word in LASTING_THREADS)
    }


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind() -> Iterator[None]:
    """Fails a module that leaves child processes or threads."""
    processes_before, threads_before = _children(), _threads()
    yield
    deadline = time.monotonic() + GONE_WITHIN_S
    while True:
        processes = {pid: name for pid, name in _children().items() if pid not in processes_before}
        threads = {ident: name for ident, name in _threads().items() if ident not in threads_before}
        if not processes and not threads:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for pid in processes:
        psutil.Process(pid).kill()
    pytest.fail(f"left behind: processes {processes}, threads {threads}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file, fetched where it is not there yet; skips where it can not be."""
    from node.errors import KithError
    from node.models import ensure_default_model

    try:
        return ensure_default_model()
    except KithError as error:
        pytest.skip(f"the default model can not be fetched: {error.message}")


DaemonFactory = Callable[..., "Daemon"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonFactory]:
    """Starts daemons as real processes, on loopback, with the echo engine unless told otherwise; ends them all.

    `daemon("--seed", address, name="b")` is `kith up` with these arguments, already started; `await it.ready()` next.
    All are of one throwaway mesh but those with `alone=True`, which are of none.
    """
    from scripts.daemons import Daemon, end_all
    from scripts.throwaway import ThrowawayMesh

    started: list[Daemon] = []
    mesh = ThrowawayMesh()

    def start(
        *arguments: str, name: str = "", environment: Mapping[str, str] | None = None, alone: bool = False
    ) -> Daemon:
        name = name or f"node{len(started)}"
        given = list(arguments)
        for option, value in (("--engine", "echo"), ("--listen", "127.0.0.1:0"), ("--threads", "1")):
            if option not in given:
                given += [option, value]
        if "--no-mdns" not in given and "--interface" not in given:
            given.append("--no-mdns")  # tests of several runs on one machine must not find each other
        one = Daemon(tmp_path / name, given, name=name, environment=environment or {}, mesh=None if alone else mesh)
        one.start()
        started.append(one)
        return one

    yield start
    wrong = end_all(started)
    assert not wrong, "\n".join(wrong)
