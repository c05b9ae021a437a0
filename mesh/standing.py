"""How far a planned job is: which tasks could run now, which failed how, and whether all are done.

Idea: a pure reading of the job's facts and its plan, so it may be kept until a fact of the job changes it. Only whether
failures are final depends on who is here: a task that failed on three nodes, or wherever it can run, fails its job.
An engine that dies under several requests says little of any one of them, and something outside may have killed it. A
task runs alone once its engine died twice so, or once under it alone.

Does not: know what is in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.dispatch import agent_of
from mesh.ledger import Job, TaskRef
from mesh.placement import Ready
from mesh.surroundings import Surroundings, task_agents
from mesh.wire import facts_pb2, work_pb2

#: A task that failed on so many nodes, or on all there are so often, fails its job; so do that many failures anywhere.
FAILURES_MAX, FAILURES_TOTAL_MAX = 3, 6
#: Why a task fails whose engine died under it: alone in there, or among other requests, any of which may be to blame.
#: The second counts as a failure for `FAILURES_TOTAL_MAX` only.
ENGINE_GONE, ENGINE_GONE_SHARED = "engine-gone", "engine-gone-shared"
#: After one of the first, or so many of the second, the task runs alone (quarantine.py).
SHARED_DEATHS = 2


@dataclass(frozen=True)
class Standing:
    ready: tuple[Ready, ...]
    #: Of each task that failed and has no result: how, its own failures first.
    failed: tuple[tuple[facts_pb2.TaskFinished, ...], ...]
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
        failed.append(tuple(sorted(failures.get(ref, ()), key=_is_shared)))
        if done.issuperset(task.depends_on):
            inputs = tuple(results[TaskRef(index, 0)].result for index in task.depends_on)
            failed_on = frozenset(agent_of(one.agent) for one in failed[-1] if not _is_shared(one))
            codes = [one.failure.code for one in failed[-1]]
            alone = ENGINE_GONE in codes or codes.count(ENGINE_GONE_SHARED) >= SHARED_DEATHS
            ready.append(Ready(job, plan_sha256, task, inputs, failed_on, alone))
    return Standing(tuple(ready), tuple(one for one in failed if one), not undone)


def failed_for_good(around: Surroundings, failed: Sequence[facts_pb2.TaskFinished]) -> bool:
    """Whether these failures of one task are enough to give its job up."""
    own = [one for one in failed if not _is_shared(one)]
    nodes = {one.agent.node_id for one in own}
    if len(nodes) >= FAILURES_MAX or len(failed) >= FAILURES_TOTAL_MAX:
        return True
    # Asked last: it goes over all nodes.
    return len(own) >= FAILURES_MAX and nodes >= {one for one in around.membership.view() if task_agents(around, one)}


def _is_shared(failed: facts_pb2.TaskFinished) -> bool:
    return failed.failure.code == ENGINE_GONE_SHARED
