"""The local door: what it answers takes nothing from the node's other duties."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

from mesh.facts import Fact, make
from mesh.replica import Replica
from mesh.wire import facts_pb2, local_pb2, work_pb2
from node.local_service import LocalService
from node.snapshots import Snapshots
from tests.node.working import KEY

JOBS = 2000


def replica_with_jobs() -> Replica:
    facts: list[Fact] = []
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="How many moons has Mars?", panel=1))
    for number in range(JOBS):
        said = facts_pb2.JobSubmitted(job_id=number.to_bytes(32, "big"), request=request)
        before = facts[-1].hash if facts else b""
        facts.append(make(KEY, 1, number + 1, before, (number + 1) << 16, "job_submitted", said))
    replica = Replica(KEY, 2, 2, random.Random(1))
    replica.restore(facts, 0, "")
    return replica


async def test_a_long_list_of_jobs_is_made_in_parts() -> None:
    """A year may hold a hundred thousand: probes are answered by the same loop."""
    replica = replica_with_jobs()
    snapshots = Snapshots(replica, cast(Any, None))
    door = LocalService(cast(Any, SimpleNamespace(replica=replica, snapshots=snapshots)))
    turns = 0

    async def other_duties() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(other_duties())
    reply = await door.Jobs(local_pb2.JobsRequest(), cast(Any, None))
    others.cancel()
    assert [job.submitted_ms for job in reply.jobs] == list(range(1, JOBS + 1))
    assert turns >= 5
