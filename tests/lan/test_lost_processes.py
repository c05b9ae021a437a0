"""Processes that die or hang while a job runs: a worker's daemon, an engine, every engine that takes one task; and what
a dead daemon leaves behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from mesh.standing import ENGINE_GONE, ENGINE_GONE_SHARED
from mesh.wire import local_pb2
from scripts.daemons import ENGINE, POLL_S, ROOT, SOLVER, Daemon, formed, processes_of, until
from scripts.workload import agreed, completed, ended, snapshot, submit, under_way, up
from tests.conftest import DaemonFactory
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(120)]

#: From SIGKILL of a daemon until its engine and solver are gone, seconds.
CHILDREN_GONE_WITHIN_S = 2.0
#: A job of 5 s when nothing hangs, with one engine hung: its task gets a second copy, nobody waits out a lease.
HEDGED_WITHIN_S = 20.0
#: Python runs it before anything else. The engine is killed by whoever asks it about poison.
POISONED = """
import os, signal, sys
if "node.engine.child" in sys.orig_argv:
    from node.engine.echo import EchoBackend
    submit = EchoBackend.submit
    def killed(self, request):
        if "poison" in str(request.command.generate):
            os.kill(os.getpid(), signal.SIGKILL)
        submit(self, request)
    EchoBackend.submit = killed
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
async def test_a_killed_daemon_takes_its_engine_and_solver_along(daemon: DaemonFactory, stopped: bool) -> None:
    node: Daemon = daemon(environment={"KITH_ECHO_TOKENS_PER_S": "5"})
    await node.ready()

    async def solving() -> bool:
        return (await node.status()).solver_state == "ready"

    await until(solving, 30.0, "the solver of the leader is ready")
    job = await submit(node, pieces=4)
    await under_way(node, job, done=0)
    assert len(node.children(ENGINE)) == len(node.children(SOLVER)) == 1
    if stopped:
        for module in (ENGINE, SOLVER):
            node.send_children(module, signal.SIGSTOP)
    node.send(signal.SIGKILL)
    killed_at = time.monotonic()
    while left := processes_of(node.data_dir):
        took = time.monotonic() - killed_at
        assert took < CHILDREN_GONE_WITHIN_S, f"after {took:.1f} s: {left}"
        await asyncio.sleep(POLL_S)


async def test_a_job_outlives_a_killed_worker_which_returns(lan_of: LanFactory) -> None:
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    others = [one for one in everyone if one is not victim]
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    victim.kill()
    after = await completed(others[0], job)
    assert after.tasks_done == after.tasks_total
    await formed(others)
    victim.start()
    await up(everyone)
    assert (await agreed(everyone, [job])).results


async def test_a_task_outlives_its_engine_which_starts_again(lan_of: LanFactory) -> None:
    lan = lan_of(2, pace=15.0)  # 4 s a task
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    job = await submit(leader, pieces=4)

    async def has_begun_to_write() -> bool:
        """A "running" task would not do: its result may be there already and only the leader not know of it yet."""
        tasks = [task for task in (await snapshot(leader, job)).tasks if task.node_name == victim.name]
        return any(task.state == "running" and 0 < task.progress.output_tokens <= 20 for task in tasks)

    await until(has_begun_to_write, 60.0, f"{victim.name} begins to write")
    assert victim.send_children(ENGINE, signal.SIGKILL) == 1
    after = await completed(leader, job)
    assert max(task.attempts for task in after.tasks) >= 2, "what ran in the killed engine ran again"
    await up(everyone)
    await agreed(everyone, [job])


async def test_a_hung_engine_holds_up_one_task_not_the_job(lan_of: LanFactory) -> None:
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    assert victim.send_children(ENGINE, signal.SIGSTOP) == 1
    after = await completed(leader, job, HEDGED_WITHIN_S)
    assert max(task.attempts for task in after.tasks) >= 2, "what hung there ran elsewhere"
    victim.send_children(ENGINE, signal.SIGCONT)
    await up(everyone)
    await agreed(everyone, [job])


@pytest.mark.timeout(240)
async def test_a_task_that_kills_every_engine_fails_its_job_and_no_other(lan_of: LanFactory, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISONED)
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    hosts = ("h1", "h2", "h3")
    lan = lan_of(3, "--slots", "2", pace=10.0, environments=dict.fromkeys(hosts, path))  # 6 s a task
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    plain = await submit(leader, pieces=5)

    async def all_slots_but_one_are_taken() -> bool:
        tasks = (await snapshot(leader, plain)).tasks
        return sum(task.state == "running" for task in tasks) == 5

    await until(all_slots_but_one_are_taken, 60.0, "five tasks run on six slots")
    poison = await submit(leader, 1, "poison")
    failed = await ended(leader, poison, 150.0)
    assert failed.state == local_pb2.JOB_STATE_FAILED
    assert {reason.code for reason in failed.reasons} <= {ENGINE_GONE, ENGINE_GONE_SHARED}
    assert failed.reasons
    await completed(leader, plain, 150.0)
    await up(everyone)
    await agreed(everyone, [plain])
