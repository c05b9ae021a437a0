"""What must hold of jobs in every run: when work is taken, said and ended, and once all is quiet.

- Submit answers in time, and what it says is true: so many nodes really hold the job and all that it reads.
- A task starts only for the leader that its node follows and sees alive, never for a lower token than before, and never
  more tasks at a time than there are slots.
- A node does not follow for long a leader whose work it refuses for a higher token.
- A result is announced only while as many nodes as its own node counts on really hold it, or after its deadline.
- One life of a node says one outcome of an attempt and one end of a job; what a node reads as a job's end only ever
  changes to what outranks it.
- In the end every job that any node knows of has ended everywhere, with the same end; a job that was acknowledged is
  known unless every store that held it is gone; it failed only if its tasks really did, by themselves, and it says how;
  what kills every engine never completes; its answer can be read, and has its copies.

An accident that takes a whole store takes copies that were truly there: `generation` of the disk tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from mesh import effects
from mesh.dispatch import TaskKey
from mesh.election import token_order
from mesh.facts import Fact, Place
from mesh.gossip import COPIES
from mesh.identity import NodeId
from mesh.intake import REPLICATE_S
from mesh.ledger import CANCELLED, COMPLETED, FAILED, OPEN, TERMINAL_KINDS, Job, Ledger, TaskRef
from mesh.standing import ENGINE_GONE_SHARED, FAILURES_TOTAL_MAX
from mesh.task_key import task_key
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.sim.denied import known_denials, limit_of
from tests.sim.disk import Write

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.clients import Order
    from tests.sim.host import Host

#: Beyond its deadline an answer may wait for a tick, and after a pause for one probe round.
ANSWER_SLACK_S = 2.5
#: Failures of one task: each of two sides of a cut, and of two plans, may try so often; what is under way still ends.
FAILURES_EVER = 4 * FAILURES_TOTAL_MAX
#: Who is followed and seen alive hears the answers to its beats, and stands above whatever higher token they name.
REFUSES_MAX_S = 6.0
#: The deadline of a result is looked at once a tick; the fact is written after it.
TIMER_SLACK_S = 0.3


class JobChecks:
    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self.hosts: Sequence[Host] = ()
        self.fallible: dict[bytes, Counter[tuple[int, int]]] = {}  # job → task → failures that really happened
        self._own: dict[bytes, Counter[tuple[int, int]]] = {}  # those of them that no other task may be to blame for
        self._asked: dict[tuple[int, int, int], float] = {}  # (host, life, ticket) → when it must be answered
        self._started_under: dict[tuple[int, int], tuple[int, str]] = {}  # (host, life) → highest token
        self._refuses: dict[tuple[int, int], tuple[tuple[int, str], float]] = {}  # (host, life) → which leader, since
        self.gone_for_good: set[bytes] = set()  # content whose last holders were lost or cut off
        #: Job → its `submitted` facts → (host, generation) that ever held them.
        self._held: dict[bytes, dict[Place, set[tuple[int, int]]]] = {}
        self._outcomes: dict[tuple[int, int, TaskKey], float] = {}  # when the engine had the result
        self._said: set[tuple[object, ...]] = set()
        self.taken_over = 0
        self._read: dict[tuple[int, int, bytes], tuple[int, bytes]] = {}  # (host, life, job) → its end as read

    def lost(self, victim: Host, dead: Collection[int]) -> None:
        """Its store is never read again: what nobody who stays holds is gone with it. `dead`: hosts that are, too."""
        gone = {host.index for host in self.hosts if host.id in self.checks.revoked} | set(dead) | {victim.index}
        elsewhere = {sha256 for host in self.hosts if host.index not in gone for sha256 in host.disk.content.blobs}
        self.gone_for_good |= victim.disk.content.blobs.keys() - elsewhere

    # Submissions

    def submit_asked(self, host: Host, ticket: int, deadline_s: float) -> None:
        self._asked[host.index, host.life, ticket] = self.checks.clock.now + deadline_s

    def submit_answered(self, host: Host, answer: effects.AnswerSubmit) -> None:
        name = (host.index, host.life, answer.ticket)
        assert name in self._asked, f"{host.name} answered a submission twice"
        due = self._asked.pop(name)
        late_s = self.checks.clock.now - max(due, host.awake_since)
        assert late_s <= ANSWER_SLACK_S, f"{host.name} answered a submission {late_s:.1f} s after its deadline"
        self.checks.say(
            host, f"answers: job {answer.job_id.hex()[:12]} is on {answer.copies} of {answer.wanted}"
            + (", known" if answer.known else "")
        )  # fmt: skip
        replica = host.replica
        assert replica is not None
        if replica.denied:
            assert not answer.copies, f"{host.name} is denied and accepts a job"
            return
        job = replica.ledger.jobs.get(answer.job_id)
        if job is not None and job.closed:
            return  # what it read may be dropped already
        in_time = self.checks.clock.now < due - TIMER_SLACK_S
        # Who fell silent since the client asked is counted in `wanted`, and not waited for.
        assert not in_time or answer.copies >= wanted_by(host), f"{host.name} answers before there are enough copies"
        blobs = list(job.submitted[1].blobs) if job is not None and job.submitted is not None else []
        holders = {
            other.index
            for other in self.hosts
            if answer.job_id in other.disk.content.jobs and all(ref.sha256 in other.disk.content.blobs for ref in blobs)
        }
        robbed = {other.index for other in self.hosts if other.disk.generation}
        assert answer.copies <= len(holders | robbed), (
            f"{host.name} says job {answer.job_id.hex()[:12]} is on {answer.copies} nodes, it is on {len(holders)}"
        )

    def overdue(self, live: Iterable[Host]) -> list[str]:
        lives = {(host.index, host.life): host for host in live}
        return [
            f"{lives[index, life].name} never answered submission {ticket}"
            for (index, life, ticket), due in self._asked.items()
            if (index, life) in lives and self.checks.clock.now > due + ANSWER_SLACK_S
        ]

    # Work

    def task_started(self, host: Host, key: TaskKey, assign: work_pb2.Assign) -> None:
        self.checks.say(host, f"starts {key.label}, attempt {assign.attempt}, term {assign.token.term}")
        assert host.replica is not None
        token = token_order(assign.token)
        highest = self._started_under.get((host.index, host.life), (0, ""))
        if host.replica.denials.is_denied(NodeId(highest[1])):
            highest = (0, "")  # forgotten
        assert token >= highest, f"{host.name} starts a task for {token} after one for {highest}"
        self._started_under[host.index, host.life] = token
        assert host.leader is not None, f"{host.name} works for a stranger"
        assert token_order(host.leader) == token, f"{host.name} works for a stranger"
        assert assign.token.leader_id in host.replica.membership.view(), f"{host.name} works for one it does not see"

    def looked_at(self, host: Host) -> None:
        """Now and then, right after a tick."""
        if host.replica is None:
            return
        name, highest = (host.index, host.life), token_order(host.replica.work.intake.highest)
        followed = host.replica.election.leader
        if followed is None or token_order(followed) >= highest:
            self._refuses.pop(name, None)
            return
        leader, since = self._refuses.get(name, ((0, ""), 0.0))
        if leader != token_order(followed):
            self._refuses[name] = token_order(followed), self.checks.clock.now
        elif self.checks.clock.now > since + REFUSES_MAX_S:
            raise AssertionError(f"{host.name} follows {leader} since {since:.1f} and refuses its work for {highest}")

    def task_ended(self, host: Host, key: TaskKey, finished: facts_pb2.TaskFinished) -> None:
        self._outcomes[host.index, host.life, key] = self.checks.clock.now
        if finished.WhichOneof("outcome") == "failure":
            self.checks.say(host, f"{key.label} fails: {finished.failure.code}")

    def authored(self, host: Host, facts: Sequence[Fact]) -> None:
        """Facts of this node go to its disk."""
        for fact in facts:
            if fact.kind == "task_finished":
                self._finished_said(host, fact.body.task_finished)
            elif fact.kind in ("job_completed", "job_failed"):
                end = getattr(fact.body, fact.kind)
                name = (host.index, host.life, fact.kind, end.job_id, token_order(end.token))
                if end.HasField("token"):
                    assert name not in self._said, f"{host.name} ended job {end.job_id.hex()[:12]} twice in one term"
                    self._said.add(name)
                if fact.kind == "job_completed" and end.HasField("token"):
                    self._completion_said(host, end)

    def _completion_said(self, host: Host, completed: facts_pb2.JobCompleted) -> None:
        assert host.replica is not None
        finished = host.replica.ledger.jobs[completed.job_id].finished.values()
        said = {one.result.sha256 for _, one in finished if one.plan_sha256 == completed.plan_sha256}
        assert said >= set(completed.result_sha256), f"{host.name} completes a job with results that nobody announced"
        assert completed.result.sha256 in host.disk.content.blobs, f"{host.name} gives an answer that it does not hold"

    def _taken_over(self, host: Host, taken: facts_pb2.TaskFinished) -> None:
        """A leader says for its plan what another plan's task yielded: the very same task, on the same inputs."""
        assert host.replica is not None
        job = host.replica.ledger.jobs[taken.job_id]
        name = f"{host.name} takes task {taken.task_index}.{taken.replica} of {taken.job_id.hex()[:12]} over"
        said = job.finished.get(taken.taken_from)
        assert said is not None, f"{name} from nobody"
        source = said[1]
        assert source.plan_sha256 != taken.plan_sha256, f"{name} from its own plan"
        assert (source.result, source.agent) == (taken.result, taken.agent), f"{name} with another result"
        content = host.labour.plans.get(taken.plan_sha256)
        assert content is not None, f"{name} for a plan that it never read"
        task = next(one for one in content.tasks if (one.index, one.replica) == (taken.task_index, taken.replica))
        results = job.results()
        read = [results[TaskRef(index, 0)].result.sha256 for index in task.depends_on]
        assert source.task_key == task_key(task, read), f"{name} from a task that is another"
        seated = [one.agent for ref, one in results.items() if ref.index == task.index]
        assert not task.panel or taken.agent not in seated, f"{name} though its agent sits on the panel already"
        self.taken_over += 1

    def _finished_said(self, host: Host, finished: facts_pb2.TaskFinished) -> None:
        if finished.taken_from:
            self._taken_over(host, finished)
            return
        if not finished.HasField("token"):
            return  # made up by workload.py
        if finished.failure.code == "no-progress":  # a leader says so of a node, maybe itself
            self._failed(finished)
            return
        assert finished.agent.node_id == host.id, f"{host.name} says how a task of another ended"
        key = TaskKey(finished.job_id, TaskRef(finished.task_index, finished.replica))
        ended_at = self._outcomes.pop((host.index, host.life, key), None)
        assert ended_at is not None, f"{host.name} says twice how {key.label} ended"
        if finished.WhichOneof("outcome") == "failure":
            self._failed(finished)
            return
        sha256 = finished.result.sha256
        assert sha256 in host.disk.content.blobs, f"{host.name} announces a result that it does not hold"
        copies = sum(1 for other in self.hosts if sha256 in other.disk.content.blobs or other.disk.generation)
        waited_s = self.checks.clock.now - ended_at
        wanted = wanted_by(host)
        assert copies >= wanted or waited_s >= REPLICATE_S - TIMER_SLACK_S, (
            f"{host.name} announces {key.label} on {copies} of {wanted} nodes after {waited_s:.2f} s"
        )

    def _failed(self, finished: facts_pb2.TaskFinished) -> None:
        task = (finished.task_index, finished.replica)
        counter = self.fallible.setdefault(finished.job_id, Counter())
        counter[task] += 1
        if finished.failure.code != ENGINE_GONE_SHARED:
            self._own.setdefault(finished.job_id, Counter())[task] += 1
        worst = counter[task]
        assert worst <= FAILURES_EVER, f"a task of job {finished.job_id.hex()[:12]} failed {worst} times, and goes on"

    def applied(self, host: Host, facts: Sequence[Fact]) -> None:
        """Facts were folded in: an end that is read may only be outranked."""
        assert host.replica is not None
        if not facts and host.replica.denials.nodes:  # an end that was said by one that is denied may be void
            life = (host.index, host.life)
            self._read = {name: read for name, read in self._read.items() if name[:2] != life}
        for fact in facts:
            if fact.kind not in TERMINAL_KINDS:
                continue
            job_id = getattr(fact.body, fact.kind).job_id
            job = host.replica.ledger.jobs.get(job_id)
            assert job is not None, f"{host.name} does not know a job that it saw end"
            assert job.closed, f"{host.name} reads an ended job as open"
            name, now_read = (host.index, host.life, job_id), rank_of(job)
            assert job.state == (COMPLETED, CANCELLED, FAILED)[now_read[0]], f"{host.name} reads another end"
            before = self._read.get(name)
            assert before is None or now_read <= before, f"{host.name} reads another end than the one that counts"
            self._read[name] = now_read

    def synced(self, host: Host, write: Write) -> None:
        for fact in write.facts:
            if fact.kind == "job_submitted":
                places = self._held.setdefault(fact.body.job_submitted.job_id, {})
                held = places.setdefault(Place(fact.stream_id, fact.sequence), set())
                held.add((host.index, host.disk.generation))

    # Once quiet

    def open_jobs(self, live: Sequence[Host]) -> list[Job]:
        """Jobs that should end, as the first live node knows them."""
        replica = live[0].replica
        assert replica is not None
        return [job for job in replica.ledger.jobs.values() if job.submitted is not None and not job.closed]

    def quiet_problems(self, live: Sequence[Host], orders: Sequence[Order]) -> list[str]:
        problems = self.overdue(live)
        replica = live[0].replica
        assert replica is not None
        ledger = replica.ledger
        for order in orders:
            job = ledger.jobs.get(order.job_id)
            if job is None or (job.submitted is None and not job.closed):
                if order.answers and self._must_count(order, live):
                    problems.append(f"job {order.job_id.hex()[:12]} was acknowledged and is lost")
            else:
                problems += self._of_order(order, job, ledger, live)
        problems += [
            f"{host.name} still runs {key.label}" for host in live for key in host.labour.engine.tasks
            if (job := ledger.jobs.get(key.job_id)) is not None and job.closed
        ]  # fmt: skip
        return problems

    def _must_count(self, order: Order, live: Sequence[Host]) -> bool:
        """Whether a survivor holds a word of it that counts. One of a member that is denied now, beyond what counts of
        that, stands for who accepted it as known from there."""
        denials = known_denials(self.checks, live)
        survivors = {(host.index, host.disk.generation) for host in live}
        places = self._held.get(order.job_id, {})
        left = [place for place, held in places.items() if held & survivors]
        limits = [(place, limit_of(place.stream_id, denials)) for place in left]
        if any(limit is None or place.sequence <= limit for place, limit in limits):
            return True
        denied = {NodeId(deny.node_id) for deny in denials}
        return bool(left and order.accepted_by - denied - {place.stream_id.author for place in places})

    def _of_order(self, order: Order, job: Job, ledger: Ledger, live: Sequence[Host]) -> list[str]:
        name = f"job {order.job_id.hex()[:12]} ({order.submitted.request.ask.question})"
        if job.state == OPEN:
            agents = sum(1 for host in live if host.has_agent)
            if order.submitted.request.ask.panel > agents or self._out_of_reach(ledger.blobs_wanted(job), live):
                return []  # it waits, by design, for more agents, or for a node that holds what it reads
            return [f"{name} is still open: {self._why_open(job, live)}"]
        if job.cancelled and not order.cancelled:
            return [f"{name} was cancelled by nobody"]
        if job.failed and not job.completed and not job.cancelled:
            worst = max(self.fallible.get(job.job_id, Counter()).values(), default=0)
            if "nonsense" not in order.words and worst < 1:
                return [f"{name} failed though no task of it did"]
            own = max(self._own.get(job.job_id, Counter()).values(), default=0)
            if not order.words and own < COPIES and len(live) >= COPIES:
                return [f"{name} failed after {own} failures of a task that were its own"]
            if not all(failed.reasons for _, failed in job.failed.values()):
                return [f"{name} failed without a reason"]
        if job.state != COMPLETED:
            return []
        if order.words in ("bad", "nonsense", "poison"):
            return [f"{name} is completed, which can not be"]
        return self._of_answer(name, job, ledger, live)

    def _of_answer(self, name: str, job: Job, ledger: Ledger, live: Sequence[Host]) -> list[str]:
        completion = job.completion
        assert completion is not None
        problems = []
        for ref in ledger.blobs_wanted(job):
            holding = [
                host for host in self.hosts
                if ref.sha256 in host.disk.content.blobs and (host in live or host.id not in self.checks.revoked)
            ]  # fmt: skip
            if ref.sha256 in self.gone_for_good and not any(host in live for host in holding):
                continue
            if self._robbed() or any(host.disk.full_ever for host in self.hosts):
                continue
            wanted = min(COPIES, len([host for host in live if host.stores]))
            if not any(host in live for host in holding) or len(holding) < wanted:
                problems.append(f"{name}: {ref.sha256.hex()[:12]} is on {[host.name for host in holding]}")
        return problems

    def _out_of_reach(self, refs: Iterable[common_pb2.BlobRef], live: Sequence[Host]) -> bool:
        """Whether something that the job reads is only on nodes that are gone, or was on a store that was lost."""
        for ref in refs:
            holding = [host for host in self.hosts if ref.sha256 in host.disk.content.blobs]
            if not any(host in live for host in holding) and (holding or self._robbed()):
                return True
        return False

    def _robbed(self) -> bool:
        return any(host.disk.generation for host in self.hosts)

    def _why_open(self, job: Job, live: Sequence[Host]) -> str:
        leader = next((host for host in live if host.leader and host.leader.leader_id == host.id), None)
        if leader is None or leader.replica is None:
            return "nobody leads"
        waiting = leader.replica.work.coordinator.waiting_for.get(job.job_id, "")
        flights = leader.replica.work.coordinator.dispatch.of_job(job.job_id)
        running = [(flight.key.label, flight.node_id[:8], flight.accepted) for flight in flights]
        return f"waits for {waiting!r}, {len(job.results())} results, in flight {running}"


def rank_of(job: Job) -> tuple[int, bytes]:
    """Less is better: completed before cancelled before failed, then the least fact hash."""
    if job.completed:
        return 0, min(job.completed)
    if job.cancelled:
        return 1, min(job.cancelled)
    if job.failed:
        return 2, min(job.failed)
    raise AssertionError("an open job has no end")


def wanted_by(host: Host) -> int:
    """Copies that this node counts on, by its own view."""
    replica = host.replica
    assert replica is not None
    able = 1
    for node_id in replica.membership.view() - {host.id}:
        profile = replica.profiles.of(node_id)
        able += profile is None or profile.stores
    return min(COPIES, able)
