"""The solver process with a real child: same results as in this process, and greedy whenever it is not there."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from node import solver_child, solver_process, solver_wire
from node.solver_process import START_LIMIT_S, SolverProcess
from scripts.daemons import until
from solver.allocation import ROUND_TASKS_MAX, allocate
from solver.costs import AgentLoad, TaskNeed

LOG = logging.getLogger("test.solver")


def a_round(agents: int = 4, tasks: int = 9, seed: int = 1) -> tuple[list[AgentLoad], list[TaskNeed]]:
    rng = random.Random(seed)
    return (
        [
            AgentLoad(f"n{n}/default", rng.uniform(50, 400), rng.uniform(5, 50), rng.randrange(900), slots_free=2)
            for n in range(agents)
        ],
        [
            TaskNeed(
                f"t{n}",
                rng.randrange(100, 900),
                rng.randrange(20, 200),
                forbidden_agents=frozenset({f"n{n % agents}/default"}),
                panel="p" if n < 2 else "",
            )
            for n in range(tasks)
        ],
    )


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


async def gone(pid: int, timeout_s: float) -> None:
    """Wait until process `pid` has ended, by the kernel's own notice."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout_s)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def started(solver: SolverProcess) -> int:
    """Start `solver`, wait until it is ready; its child's pid."""
    await solver.start()
    assert await solver.wait_ready()
    assert solver.state == "ready"
    assert solver.pid is not None
    return solver.pid


@pytest.fixture
async def solver() -> AsyncIterator[SolverProcess]:
    process = SolverProcess(LOG)
    yield process
    await process.stop()
    assert process.pid is None
    assert process.state == "stopped"


async def test_greedy_while_it_starts_then_the_childs_own_results_and_nothing_left_behind() -> None:
    solver = SolverProcess(LOG)
    early = await solver.allocate(*a_round())
    assert (early.method, early.method_reason) == ("greedy", "the solver process is starting")
    assert early.solve_seconds > 0.0
    pid = await started(solver)
    assert solver.start_s > 0.0
    cases = [a_round(seed=seed) for seed in range(6)]
    results = await asyncio.gather(*(solver.allocate(*case) for case in cases))
    assert [replace(result, solve_seconds=0.0) for result in results] == [allocate(*case) for case in cases]
    assert all(0.0 < result.solve_seconds < solver_process.LIMIT_S for result in results)
    assert (await solver.allocate([], [])).assignments == ()
    assert solver.pid == pid
    await solver.stop()
    assert not alive(pid)
    await solver.stop()


@pytest.mark.slow
async def test_a_killed_child_means_greedy_with_the_reason_and_then_a_new_child(
    solver: SolverProcess, caplog: pytest.LogCaptureFixture
) -> None:
    first = await started(solver)
    os.kill(first, signal.SIGKILL)
    result = await solver.allocate(*a_round())
    assert result.method == "greedy"
    assert "the solver process ended" in result.method_reason
    assert len(result.assignments) == 8
    assert await started(solver) != first
    assert f"process {first} ended: signal 9" in caplog.text
    assert (await solver.allocate(*a_round())).method.startswith("cvxpy")


@pytest.mark.slow
async def test_a_frozen_child_is_ended_after_the_limit() -> None:
    solver = SolverProcess(LOG, limit_s=0.3)
    try:
        frozen = await started(solver)
        os.kill(frozen, signal.SIGSTOP)
        result = await solver.allocate(*a_round())
        assert result.method == "greedy"
        assert "longer than 0.3 s" in result.method_reason
        await gone(frozen, 5.0)
    finally:
        await solver.stop()


async def test_it_stops_when_idle_and_starts_again_when_asked() -> None:
    solver = SolverProcess(LOG, idle_s=0.2)
    try:
        await solver.start()
        assert not await solver.wait_ready()
        assert (solver.state, solver.pid) == ("stopped", None)
        assert (await solver.allocate(*a_round())).method_reason == "the solver process is starting"
    finally:
        await solver.stop()


async def test_a_child_that_can_not_start_leaves_greedy_with_its_last_words(
    solver: SolverProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cvxpy.py").write_text("raise ImportError('cvxpy is broken here')\n")
    real = solver_process._child_environment()
    path = f"{tmp_path}{os.pathsep}{real['PYTHONPATH']}"
    monkeypatch.setattr(solver_process, "_child_environment", lambda: {**real, "PYTHONPATH": path})
    await solver.start()
    assert not await solver.wait_ready()
    result = await solver.allocate(*a_round())
    assert result.method == "greedy"
    assert "did not start" in result.method_reason
    assert "cvxpy is broken here" in result.method_reason


async def test_a_child_for_which_no_thread_can_be_started_is_started_later(
    solver: SolverProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio starts one for each child; in a container whose processes are counted it may not."""

    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as crowded:
        crowded.setattr(asyncio, "create_subprocess_exec", refuse)
        await solver.start()
        assert not await solver.wait_ready()
        assert "can't start new thread" in (await solver.allocate(*a_round())).method_reason

    async def ready() -> bool:
        return solver.state == "ready"

    await until(ready, START_LIMIT_S, "the next start")


@pytest.mark.parametrize("after_s", [0.0, 0.5])
async def test_stop_during_start_leaves_no_child(after_s: float) -> None:
    solver = SolverProcess(LOG)
    await solver.start()
    await solver.wait_ready(after_s)  # a quick machine may be through with it
    pid = solver.pid
    await solver.stop()
    assert solver.pid is None
    assert pid is None or not alive(pid)


@pytest.mark.slow
async def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, logging, sys\n"
        "from node.solver_process import SolverProcess\n"
        "async def main():\n"
        "    solver = SolverProcess(logging.getLogger('parent'))\n"
        "    await solver.start(); await solver.wait_ready()\n"
        "    print(solver.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, env=solver_process._child_environment(), cwd=tmp_path
    )
    assert parent.stdout is not None
    try:
        child = int(await asyncio.wait_for(parent.stdout.readline(), 60))
        assert alive(child)
    finally:
        parent.kill()
        await parent.wait()
    await gone(child, 5.0)


@pytest.mark.slow
def test_what_is_put_off_is_still_there() -> None:
    code = (
        "from node.solver_child import prepare_import; prepare_import()\n"
        "import cvxpy, sys, numpy\n"
        "late = {'scipy.stats._stats_py', 'scipy.optimize._optimize', 'numpy.f2py.f2py2e'}\n"
        "assert not late & set(sys.modules)\n"
        "print(cvxpy.quantum_rel_entr is not None, round(float(sys.modules['scipy.stats'].entropy([0.5, 0.5])), 4))\n"
        "from scipy.stats import norm; from scipy.optimize import linear_sum_assignment as lsa\n"
        "assert lsa([[1.0, 2.0], [1.0, 5.0]])[1].tolist() == [1, 0] and numpy.f2py.get_include()\n"
        "print(float(norm.cdf(0.0)), sorted({'OSQP', 'SCS', 'HIGHS'} & set(cvxpy.installed_solvers())))\n"
    )
    environment = solver_process._child_environment()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n")[:2] == ["True 0.6931", "0.5 ['HIGHS']"]


def test_messages_survive_the_wire() -> None:
    agents, tasks = a_round()
    body = solver_wire.encode(solver_wire.round_to_json(agents, tasks))[4:]
    assert solver_wire.round_from_json(solver_wire._parse(body)) == (agents, tasks)
    result = allocate(agents, tasks)
    body = solver_wire.encode(solver_wire.allocation_to_json(result))[4:]
    assert solver_wire.allocation_from_json(solver_wire._parse(body)) == result


@pytest.mark.parametrize("body", [b"no json", b"[]", b"\xff"])
def test_bytes_that_are_no_message_are_an_error(body: bytes) -> None:
    with pytest.raises(solver_wire.WireError):
        solver_wire._parse(body)


def test_lengths_are_bounded_on_both_ends() -> None:
    with pytest.raises(solver_wire.WireError, match="above the limit"):
        solver_wire._checked_length(b"\xff\xff\xff\xff")
    with pytest.raises(solver_wire.WireError, match="above the limit"):
        solver_wire.encode({"x": "y" * solver_wire.FRAME_BYTES_MAX})
    agents, tasks = a_round(agents=1000, tasks=ROUND_TASKS_MAX)
    assert len(solver_wire.encode(solver_wire.round_to_json(agents, tasks))) < solver_wire.FRAME_BYTES_MAX / 10
    with pytest.raises(solver_wire.WireError):
        solver_wire.allocation_from_json({"assignments": [{}]})


def test_the_child_module_is_light_before_it_prepares_the_import() -> None:
    names = "{'grpc', 'numpy', 'cvxpy', 'asyncio'}"
    code = f"import node.solver_child, sys; print(sorted({names} & set(sys.modules)))"
    environment = solver_process._child_environment()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert solver_child.__doc__
