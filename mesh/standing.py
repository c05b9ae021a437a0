"""How far a planned job is: which tasks could run now, which failed how, and whether all are done.

Idea: a pure reading of the job's facts and its plan, so it may be kept until a fact of the job changes it. Only whether
failures are final depends on who is here: a task that failed on three nodes, or wherever it can run, fails its job.

Does not: know what is in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.ledger import Job, TaskRef
from mesh.placement import Ready, agent_of
from mesh.surroundings import Surroundings
from mesh.wire import facts_pb2, work_pb2

#: A task that failed on so many nodes, or on all there are so often, fails its job; so do that many failures anywhere.
FAILURES_MAX, FAILURES_TOTAL_MAX = 3, 6


@dataclass(frozen=True)
class Standing:
    ready: tuple[Ready, ...]
    failed: tuple[tuple[facts_pb2.TaskFinished, ...], ...]  # of each task that failed and has no result: how
    done: bool


def standing_of(job: Job, plan: work_pb2.Plan, plan_sha256: bytes) -> Standing:
    """Args: `plan` is the job's winning plan, named `plan_sha256`."""
    results = job.results()
    failures = job.failures()
    undone = {task.index for task in plan.tasks if TaskRef(task.index, task.replica) not in results}
    done = {task.index for task in plan.tasks} - undone
    ready = []
    failed = []
    for task in plan.tasks:
        ref = TaskRef(task.index, task.replica)
        if ref in results:
            continue
        failed.append(tuple(failures.get(ref, ())))
        if done.issuperset(task.depends_on):
            inputs = tuple(results[TaskRef(index, 0)].result for index in task.depends_on)
            failed_on = frozenset(agent_of(one.agent) for one in failed[-1])
            ready.append(Ready(job, plan_sha256, task, inputs, failed_on))
    return Standing(tuple(ready), tuple(one for one in failed if one), not undone)


def failed_for_good(around: Surroundings, failed: Sequence[facts_pb2.TaskFinished]) -> bool:
    """Whether these failures of one task are enough to give its job up."""
    nodes = {one.agent.node_id for one in failed}
    with_agents = {
        node_id
        for node_id in around.membership.view()
        if (profile := around.profiles.of(node_id)) is not None and profile.agents
    }
    everywhere = len(failed) >= FAILURES_MAX and nodes >= with_agents
    return len(nodes) >= FAILURES_MAX or everywhere or len(failed) >= FAILURES_TOTAL_MAX
