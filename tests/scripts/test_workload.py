"""When nodes agree: what they say of everything they hold is compared, not only how much of it there is."""

from dataclasses import replace

import pytest

from mesh.wire import facts_pb2, local_pb2
from scripts.daemons import Daemon, until
from scripts.workload import agreed, begun, difference, ended, not_completed, standing, submit
from tests.conftest import DaemonFactory

pytestmark = pytest.mark.slow


async def test_nodes_that_hold_as_many_other_facts_do_not_agree(daemon: DaemonFactory) -> None:
    one, other = daemon(name="one", alone=True), daemon(name="other", alone=True)
    for node in (one, other):
        await node.ready()
    here, there = await standing(one), await standing(other)
    as_many = replace(there, facts=here.facts)
    assert (as_many.jobs, as_many.results) == (here.jobs, here.results)
    assert "facts" in difference(here, as_many)
    assert difference(here, replace(as_many, digest=here.digest)) == ""
    assert difference(here, replace(as_many, digest=b"")) == "", "a release that does not say"


async def test_nodes_of_one_mesh_come_to_agree_on_a_new_fact(daemon: DaemonFactory) -> None:
    first = daemon(name="first")
    await first.ready()
    address = (await first.status()).addresses[0]
    both = [first, daemon("--seed", f"{address.host}:{address.port}", name="second")]
    await both[1].ready()
    await until(lambda: _sees(both[0], 2), 20.0, "two nodes")
    before = await agreed(both)
    assert len(before.digest) == 32
    async with first.client() as client:
        await client.add_knowledge(facts_pb2.KnowledgeAdded(title="Keys", text="Under the flower pot."))
    after = await agreed(both)
    assert (after.digest != before.digest, after.facts > before.facts) == (True, True)


async def test_a_job_has_begun_once_a_task_of_it_runs_or_it_has_ended(daemon: DaemonFactory) -> None:
    slow = {"KITH_ECHO_TOKENS_PER_S": "2"}  # minutes for a task
    node = daemon(name="one", alone=True, environment=slow)
    await node.ready()
    job = await submit(node, 2)
    assert await begun(node, job), "it runs"
    async with node.client() as client:
        await client.cancel(job)
    assert (await ended(node, job)).state == local_pb2.JOB_STATE_CANCELLED
    assert not await begun(node, job), "it has ended"
    left = await not_completed([node], [job], 0.0)
    assert left == {job: f"{job.hex()[:12]} is JOB_STATE_CANCELLED on one"}


async def test_a_job_that_nobody_knows_is_not_completed(daemon: DaemonFactory) -> None:
    node = daemon(name="one", alone=True)
    await node.ready()
    unheard_of = b"\1" * 32
    left = await not_completed([node], [unheard_of], 0.0)
    assert left == {unheard_of: f"{unheard_of.hex()[:12]} is unknown on one"}


async def _sees(node: Daemon, count: int) -> bool:
    return len(await node.nodes()) == count
