"""What the nemesis calls lost: every accepted job that did not come to its result, however it ended."""

import pytest

from mesh.wire import local_pb2
from scripts.benches import nemesis
from scripts.daemons import ENGINE, Daemon, until
from scripts.lan_hosts import Lan
from scripts.workload import OPEN, snapshot, submit
from tests.conftest import DaemonFactory

pytestmark = pytest.mark.slow


async def failed_job(node: Daemon) -> bytes:
    """A job whose one task kills its engine, whoever begins it."""
    job = await submit(node, 1)

    async def ended() -> bool:
        now = await snapshot(node, job)
        if any(task.state == "running" for task in now.tasks):
            node.send_children(ENGINE, 9)
        return now.state != OPEN

    await until(ended, 120.0, "the job has ended")
    assert (await snapshot(node, job)).state == local_pb2.JOB_STATE_FAILED
    return job


async def test_a_job_that_ends_failed_is_lost(daemon: DaemonFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemesis, "CONVERGED_WITHIN_S", 10.0)
    node = daemon(name="one", alone=True, environment={"KITH_ECHO_TOKENS_PER_S": "60"})
    await node.ready()
    job = await failed_job(node)
    tally = nemesis.Tally()
    wrong = await nemesis._judge(Lan("unused", 1, []), [node], [job], tally)
    assert tally.lost == {job}
    assert tally.diverged == 0, wrong
    assert "JOB_STATE_FAILED" in wrong
