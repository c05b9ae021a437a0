"""The solver process: `python -m node.solver_child FD PARENT_PID`.

Why a process of its own: cvxpy takes seconds to import and most of the memory of what imports it, and a solve would
stall the daemon's event loop. It answers one round after the other on the socket FD and ends when the socket does, or
when its parent dies. It handles no secrets and no prompt text, only counts and rates.

What makes the import cheaper (measured: 5.6 → 2.3 s of CPU, 124 → 80 MB resident):
- `scipy.optimize` and `numpy.f2py` load at their first use, by the standard library's LazyLoader. cvxpy looks whether
  the first is there, and something takes every name of numpy; nothing here uses either.
- `scipy.stats` too, by a stand-in of its own: cvxpy takes `entropy` out of it at import, for an atom that no programme
  here has, and that alone would make a lazy module load.
- OSQP, SCS and Clarabel are hidden. cvxpy loads every solver that it finds to see which there are; one is used here.
- one BLAS thread: the matrices are tiny, and the cores belong to the engine.
"""

import ctypes
import importlib
import importlib.util
import os
import signal
import socket
import sys
import time
import types
from dataclasses import replace
from typing import Any

_PR_SET_PDEATHSIG = 1
_HIDDEN_SOLVERS = ("osqp", "scs", "clarabel")
_PUT_OFF = ("numpy.f2py", "scipy.optimize")


def main() -> None:
    began = time.perf_counter()
    connection = socket.socket(fileno=int(sys.argv[1]))
    end_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    prepare_import()
    from node import solver_wire
    from solver.allocation import allocate
    from solver.costs import AgentLoad, TaskNeed
    from solver.programme import METHOD, ProgrammeError, Programmes

    programmes = Programmes()
    allocate([AgentLoad("warm-up")], [TaskNeed("warm-up", 1, 1)], programmes)  # loads HiGHS: part of getting ready
    _send(connection, solver_wire.encode({"ready": METHOD, "start_s": time.perf_counter() - began}))
    while (message := solver_wire.read_blocking(connection)) is not None:
        agents, tasks = solver_wire.round_from_json(message)
        started = time.perf_counter()
        try:
            allocation = allocate(agents, tasks, programmes)
            reply = solver_wire.allocation_to_json(replace(allocation, solve_seconds=time.perf_counter() - started))
        except ProgrammeError as error:
            reply = {"problem": str(error)}
        _send(connection, solver_wire.encode({"id": message["id"], **reply}))


def _send(connection: socket.socket, frame: bytes) -> None:
    try:
        connection.sendall(frame)
    except BrokenPipeError:
        sys.exit(0)  # the daemon is gone or has given up on this process


def end_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies; where it can not, the socket's end does it later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call
            sys.exit(0)


def prepare_import() -> None:
    """Make `import cvxpy` cheaper; call it before the first import of numpy."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"
    for solver in _HIDDEN_SOLVERS:
        sys.modules[solver] = None  # type: ignore[assignment]  # "import X" then raises ImportError
    for name in _PUT_OFF:
        _put_off(name)
    sys.modules["scipy.stats"] = _ScipyStatsLater("scipy.stats")


def _put_off(name: str) -> None:
    """Make `name` a module that loads itself at its first use (recipe of the importlib documentation)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None or name in sys.modules:
        return
    loader = importlib.util.LazyLoader(spec.loader)
    spec.loader = loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    package, _, attribute = name.rpartition(".")
    setattr(sys.modules[package], attribute, module)


class _ScipyStatsLater(types.ModuleType):
    """Stands in for `scipy.stats` and becomes it at the first use of anything."""

    @staticmethod
    def entropy(*arguments: Any, **options: Any) -> Any:
        return _real_scipy_stats().entropy(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system, not by a user
            raise AttributeError(name)
        return getattr(_real_scipy_stats(), name)


def _real_scipy_stats() -> Any:
    if isinstance(sys.modules.get("scipy.stats"), _ScipyStatsLater):
        del sys.modules["scipy.stats"]
    return importlib.import_module("scipy.stats")


if __name__ == "__main__":
    main()
