"""Results of other plans of a job that serve the plan that counts: taken over instead of being worked out again.

Idea: a job has a second plan when content was lost for good, or when two sides of a cut planned it. What a task yields
depends on its key alone (task_key.py), so the leader says anew, for the plan that counts, what another plan's task of
the same key yielded. That is a fact like any other: what a job reads as still depends on facts only, on no plan that a
node may not hold. What runs for another plan goes on where its key is still wanted, and is stopped where it is not.

A deeper plan is made because something was lost: for it only what somebody in sight is known to hold is taken over, and
nothing that was missed when it was asked for.
Members of a panel sit on distinct agents, across plans as well.

Source: DESIGN section 3 rule 4.

Does not: take over failures, or what was finished under the same plan (the ledger does).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mesh.copies import Copies
from mesh.dispatch import Agent, Dispatch, InFlight, TaskKey, agent_of
from mesh.effects import Author, Effect, Log
from mesh.ledger import Job, Said
from mesh.placement import Ready
from mesh.surroundings import Surroundings
from mesh.wire import common_pb2, facts_pb2

#: What was said and is not folded in after so long was lost with its stream (a proven fork): said again.
SAY_AGAIN_S = 30.0


@dataclass
class Takeover:
    """Invariant: of a task at most one word is on its way to the disk."""

    around: Surroundings
    copies: Copies
    dispatch: Dispatch
    _said: dict[TaskKey, float] = field(default_factory=dict)  # on its way to the disk, since when
    _unreadable: dict[bytes, set[bytes]] = field(default_factory=dict)  # of jobs: results that nobody gave when asked

    def reset(self) -> None:
        """A new leadership."""
        self._said.clear()
        self._unreadable.clear()

    def unreadable(self, job_id: bytes, sha256s: Iterable[bytes]) -> None:
        """Nobody in sight gave some of these results of a job."""
        self._unreadable.setdefault(job_id, set()).update(sha256s)

    def job_ended(self, job_id: bytes) -> None:
        self._unreadable.pop(job_id, None)
        for key in [key for key in self._said if key.job_id == job_id]:
            del self._said[key]

    def folded(self, key: TaskKey) -> None:
        """A result of this task is in the ledger."""
        self._said.pop(key, None)

    def take(
        self, job: Job, ready: Sequence[Ready], token: common_pb2.FencingToken, now: float
    ) -> tuple[list[Effect], Sequence[Ready]]:
        """Say what of `ready` another plan has done. Returns that, and what is left to be done."""
        others = job.results_of_other_plans()
        if not others:
            return [], ready
        effects: list[Effect] = []
        settling = {
            key.ref.index for key, at in self._said.items() if key.job_id == job.job_id and now < at + SAY_AGAIN_S
        }
        for one in ready:
            index = one.task.index
            if index in settling:
                continue
            for said, finished in others.get(one.task_key, ()):
                if self._in_reach(job, finished) and self._has_a_seat(one, agent_of(finished.agent)):
                    settling.add(index)
                    self._said[one.key] = now
                    effects += _say(one, said, finished, token)
                    break
        # The members of a panel wait for the one that was said, because it takes a seat.
        return effects, [one for one in ready if one.task.index not in settling]

    def of_no_use(self, job: Job, ready: Sequence[Ready]) -> list[InFlight]:
        """What runs for another plan, though the plan that counts has another task, or none, in its place."""
        assert job.plan is not None
        if len(job.plans) < 2:
            return []
        wanted = {one.key.ref: one.task_key for one in ready}
        results = job.results()
        useless = []
        for flight in self.dispatch.of_job(job.job_id):
            ref = flight.key.ref
            other = flight.plan_sha256 != job.plan.plan.sha256
            if other and (ref in results or (ref in wanted and wanted[ref] != flight.task_key)):
                useless.append(flight)
        return useless

    def _in_reach(self, job: Job, finished: facts_pb2.TaskFinished) -> bool:
        assert job.plan is not None
        made_for = job.plans.get(finished.plan_sha256)
        if made_for is not None and made_for[1].revision == job.plan.revision:
            return True
        if finished.result.sha256 in self._unreadable.get(job.job_id, ()):
            return False
        holders = self.copies.holders([finished.result]) or set()
        return bool(holders & (self.around.membership.view() | {self.around.me}))

    def _has_a_seat(self, one: Ready, agent: Agent) -> bool:
        """Whether nobody else of the task's panel sits on this agent."""
        if not one.task.panel:
            return True
        index, replica = one.task.index, one.task.replica
        seated = {agent_of(done.agent) for ref, done in one.job.results().items() if ref.index == index}
        seated |= {
            agent_of(flight.agent)
            for flight in self.dispatch.of_job(one.job.job_id)
            if flight.key.ref.index == index and flight.key.ref.replica != replica
        }
        return agent not in seated


def _say(one: Ready, said: Said, finished: facts_pb2.TaskFinished, token: common_pb2.FencingToken) -> list[Effect]:
    taken = facts_pb2.TaskFinished()
    taken.CopyFrom(finished)
    taken.plan_sha256 = one.plan_sha256
    taken.task_index, taken.replica = one.task.index, one.task.replica
    taken.taken_from = said.hash
    taken.token.CopyFrom(token)
    return [Author("task_finished", taken), Log("info", f"{one.key.label} was done for another plan: it is taken over")]
