"""The leader's side of commanding work: which task runs where, since when, and whether it still moves.

Idea: an attempt in flight holds a lease that every sign of progress renews. It ends for the leader when its `finished`
fact is folded in, when its agent declines, when its node is dead or left, or when the lease runs out; then the task may
be assigned again, and a duplicate result is harmless. Frozen is worse than dead, so an attempt that is merely *late* is
not waited for either: the task gets one second copy elsewhere (a hedge), and its node gets nothing new until it moves.
What counts as late follows the node's own pace: the gaps between its last words, those of reading prompts apart from
those of writing, which are shorter by far and many.

Nothing here is durable: a new leader starts empty and first hears, from the workers' reports, what still runs.

Source for hedging: Dean and Barroso, "The tail at scale" (2013).

Does not: choose agents (solver/), send anything (coordinator.py), or decide what is a result (the ledger).
"""

from collections import Counter, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from mesh.identity import NodeId
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, work_pb2

#: Without any word of progress for so long an attempt counts as lost. Longer than the slowest prefill chunk by far.
LEASE_S = 30.0
#: An assignment that was not even accepted by then did not arrive; after the first of the two it is late.
ACCEPT_S, ACCEPT_LATE_S = 5.0, 1.0
#: No progress for so long is late, or for so many times the longest of the node's last gaps, if that is more.
LATE_S, LATE_GAPS = 1.5, 4.0
#: Gaps remembered of a node in each phase, and the longest that one may count; nor does it count for more than what was
#: late when it began. One stall must not excuse the next.
GAPS_KEPT, GAP_MAX_S = 32, 5.0
#: The phases in which a task's prompt is not read yet; empty: it has not said any.
READING = frozenset({"", "queued", "reading"})
#: A node that declined is not asked again for so long, for it said no for a reason that a moment may mend; doubled with
#: each time in a row up to the second, because every assignment is journaled.
REST_S, REST_MAX_S = 0.5, 8.0
#: A task whose inputs no node in sight holds is tried again after this, doubled each time up to the second.
INPUTS_REST_S, INPUTS_REST_MAX_S = 2.0, 30.0
#: Why a worker declines such a task. It is nobody's failure.
INPUTS_MISSING = "blob-missing"
#: A node that work was taken from because it did not move rests, doubled each time up to the second, until it moves.
STUCK_REST_S, STUCK_REST_MAX_S = 2.0, 60.0
#: The phase of a task whose engine is done and whose result waits for copies; late only when even that is over.
COPYING, COPYING_LATE_S = "copying", 5.0
#: How long a new leader waits for workers to report what they still run.
REPORT_WAIT_S = 0.3
#: Attempts of one task in flight at a time: the first and its hedge.
ATTEMPTS_AT_ONCE = 2


K = TypeVar("K", bound=Hashable)
Agent = tuple[str, str]  # (node id, agent)


class TaskKey(NamedTuple):
    job_id: bytes
    ref: TaskRef

    @property
    def label(self) -> str:
        """For log lines."""
        return f"task {self.ref.index}.{self.ref.replica} of {self.job_id.hex()[:12]}"


@dataclass
class InFlight:
    key: TaskKey
    plan_sha256: bytes
    agent: common_pb2.AgentRef
    attempt: int
    assigned_at: float
    progressed_at: float
    prompt_tokens: int
    output_tokens: int
    accepted: bool = False
    progress: work_pb2.TaskProgress | None = None
    task_key: bytes = b""

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.agent.node_id)

    @property
    def uses_engine(self) -> bool:
        return self.progress is None or self.progress.phase != COPYING

    @property
    def reads(self) -> bool:
        return self.accepted and (self.progress is None or self.progress.phase in READING)


@dataclass
class _Pace:
    """How a node moves: the gaps between its words of progress, seconds."""

    reading: deque[float] = field(default_factory=lambda: deque(maxlen=GAPS_KEPT))
    writing: deque[float] = field(default_factory=lambda: deque(maxlen=GAPS_KEPT))
    moved_at: float = 0.0
    read_at: float = 0.0  # when a task that was reading said its last word: later, it may write
    strikes: int = 0  # how often work was taken from it since it last moved
    declines: int = 0  # in a row

    def late_after_s(self, *, reads: bool) -> float:
        """`reads`: whether anything there does. An engine moves all at once, no faster than where it only writes. Gaps
        are judged and recorded by the same rule."""
        longest = max(self.writing, default=0.0)
        if reads:
            longest = max(longest, max(self.reading, default=0.0))
        return max(LATE_S, LATE_GAPS * longest)

    def moved(self, gap_s: float, *, reads: bool) -> None:
        gaps = self.reading if reads else self.writing
        gaps.append(min(gap_s, GAP_MAX_S, self.late_after_s(reads=reads)))


@dataclass
class Dispatch:
    """Invariant: of a task at most `ATTEMPTS_AT_ONCE` attempts are in flight, each on another node."""

    in_flight: dict[TaskKey, list[InFlight]] = field(default_factory=dict)
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    resting: dict[NodeId, float] = field(default_factory=dict)  # who is left alone, until when
    #: Tasks that wait for their inputs: until when, and how often they did.
    held_back: dict[TaskKey, tuple[float, int]] = field(default_factory=dict)
    _by_node: dict[NodeId, list[InFlight]] = field(default_factory=dict)
    _of_job: Counter[bytes] = field(default_factory=Counter)  # attempts in flight
    _paces: dict[NodeId, _Pace] = field(default_factory=dict)

    def reset(self) -> None:
        """A new leadership begins, or an old one ended."""
        self.in_flight.clear()
        self.attempts.clear()
        self.resting.clear()
        self.held_back.clear()
        self._paces.clear()
        self._by_node.clear()
        self._of_job.clear()

    # What happens to attempts

    def assigned(
        self,
        key: TaskKey,
        plan_sha256: bytes,
        agent: common_pb2.AgentRef,
        now: float,
        prompt_tokens: int,
        output_tokens: int,
        task_key: bytes = b"",
    ) -> int:
        """Note an assignment. Returns the attempt's number, from 1."""
        assert self.may_start(key, NodeId(agent.node_id))
        attempt = self.attempts.get(key, 0) + 1
        self.attempts[key] = attempt
        flight = InFlight(key, plan_sha256, agent, attempt, now, now, prompt_tokens, output_tokens, task_key=task_key)
        self._add(flight)
        return attempt

    def may_start(self, key: TaskKey, node_id: NodeId) -> bool:
        """Whether another attempt may start, on this node."""
        flights = self.in_flight.get(key, ())
        return len(flights) < ATTEMPTS_AT_ONCE and all(flight.node_id != node_id for flight in flights)

    def event_received(self, peer: NodeId, event: work_pb2.TaskEvent, now: float) -> InFlight | None:
        """Renew or end a lease. Returns the attempt where it ended without a result (it was declined)."""
        flight = self.find(peer, event)
        if flight is None:
            return None
        match event.WhichOneof("event"):
            case "accepted":
                flight.accepted = True
                flight.progressed_at = now
                self._paces.setdefault(peer, _Pace()).declines = 0
            case "progress":
                flight.accepted = True
                self._moved(flight, now)
                flight.progressed_at = now
                flight.progress = event.progress
            case "declined" if event.attempt == flight.attempt:
                self._remove(flight)
                if event.declined.code == INPUTS_MISSING:
                    self._hold_back(flight.key, now)
                else:
                    pace = self._paces.setdefault(peer, _Pace())
                    self._rest(peer, now + min(REST_MAX_S, REST_S * 2**pace.declines))
                    pace.declines = min(pace.declines + 1, 10)
                return flight
            case "ended":
                self._moved(flight, now)
                flight.progressed_at = now
        return None

    def find(self, peer: NodeId, event: work_pb2.TaskEvent) -> InFlight | None:
        """The attempt that a word of `peer` is about."""
        if event.agent.node_id != peer:
            return None
        return next((one for one in self.in_flight.get(key_of_event(event), ()) if one.node_id == peer), None)

    def adopt(self, peer: NodeId, plan_sha256: bytes, event: work_pb2.TaskEvent, now: float) -> bool:
        """Take over what a worker says it runs, unless enough attempts are under way. Returns whether it counts now."""
        key = key_of_event(event)
        if event.agent.node_id != peer or not self.may_start(key, peer):
            return False
        self.attempts[key] = max(self.attempts.get(key, 0), event.attempt)
        flight = InFlight(key, plan_sha256, event.agent, event.attempt, now, now, 0, 0, True, event.progress)
        flight.task_key = event.task_key
        self._add(flight)
        return True

    def not_running(self, peer: NodeId, running: Collection[TaskKey]) -> list[InFlight]:
        """A worker told all that it runs: what it had accepted beside that ended with an earlier life of it."""
        gone = [flight for flight in self.on_node(peer) if flight.accepted and flight.key not in running]
        for flight in gone:
            self._remove(flight)
        return gone

    def done(self, key: TaskKey) -> list[InFlight]:
        """A result of this task is in the ledger: all attempts end."""
        flights = list(self.of_task(key))
        for flight in flights:
            self._remove(flight)
        self.held_back.pop(key, None)
        return flights

    def ended(self, key: TaskKey, plan_sha256: bytes, node_id: NodeId) -> None:
        """How this attempt ended is in the ledger, and it is no result of the plan that counts: others go on."""
        for flight in list(self.in_flight.get(key, ())):
            if (flight.node_id, flight.plan_sha256) == (node_id, plan_sha256):
                self._remove(flight)

    def given_up(self, flight: InFlight) -> None:
        """An attempt is of no use any more."""
        self._remove(flight)

    def taken_from(self, flight: InFlight, now: float) -> None:
        """An attempt ended because its node did not move: the node rests, longer each time, until it moves."""
        pace = self._paces.setdefault(flight.node_id, _Pace())
        self._rest(flight.node_id, now + min(STUCK_REST_MAX_S, STUCK_REST_S * 2**pace.strikes))
        pace.strikes = min(pace.strikes + 1, 10)

    def job_ended(self, job_id: bytes) -> list[InFlight]:
        """What still runs for a job that ended is of no use."""
        flights = self.of_job(job_id)
        for flight in flights:
            self._remove(flight)
        for part in (self.attempts, self.held_back):
            for key in [key for key in part if key.job_id == job_id]:
                del part[key]
        return flights

    def member_lost(self, node_id: NodeId) -> list[InFlight]:
        """A node is dead or left: what ran there may be assigned again."""
        lost = self.on_node(node_id)
        for flight in lost:
            self._remove(flight)
        self._paces.pop(node_id, None)
        self.resting.pop(node_id, None)
        return lost

    def tick(self, now: float) -> list[InFlight]:
        """Leases that ran out. Their nodes rest."""
        expired = [
            flight
            for flights in self.in_flight.values()
            for flight in flights
            if now - flight.progressed_at > (LEASE_S if flight.accepted else ACCEPT_S)
        ]
        for flight in expired:
            self._remove(flight)
            self.taken_from(flight, now)
        return expired

    # What is known of nodes

    def why_late(self, flight: InFlight, now: float) -> str:
        """Why an attempt is late by its own words, as a phrase; empty while it is not."""
        silent = now - flight.progressed_at
        if not flight.accepted:
            return f"it was not accepted for {silent:.1f} s" if silent > ACCEPT_LATE_S else ""
        pace = self._pace_of(flight.node_id)
        reads = self._read_meanwhile(flight, pace)
        late_after = pace.late_after_s(reads=reads) if flight.uses_engine else COPYING_LATE_S
        return f"it made no progress for {silent:.1f} s" if silent > late_after else ""

    def is_stuck(self, node_id: NodeId, now: float) -> bool:
        """Whether something is late on this node and nothing else moves there."""
        flights = self.on_node(node_id)
        pace = self._pace_of(node_id)
        moving = flights and now - pace.moved_at <= pace.late_after_s(reads=self._anything_reads(node_id))
        return not moving and any(self.why_late(flight, now) for flight in flights)

    def rests(self, node_id: NodeId, now: float) -> bool:
        return now < self.resting.get(node_id, now)

    def is_held_back(self, key: TaskKey, now: float) -> bool:
        return key in self.held_back and now < self.held_back[key][0]

    def of_task(self, key: TaskKey) -> list[InFlight]:
        return self.in_flight.get(key, [])

    def on_node(self, node_id: NodeId) -> list[InFlight]:
        return list(self._by_node.get(node_id, ()))

    def runs(self, job_id: bytes) -> bool:
        """Whether anything of this job is in flight."""
        return job_id in self._of_job

    def in_engine(self, agent: Agent) -> list[TaskKey]:
        """The tasks that this agent's engine works on, as far as it is known here."""
        flights = self._by_node.get(NodeId(agent[0]), ())
        return [one.key for one in flights if one.agent.agent == agent[1] and one.uses_engine]

    def agents_at_work(self) -> set[Agent]:
        """Whose engines work on a task, as far as it is known here."""
        return {agent_of(one.agent) for flights in self._by_node.values() for one in flights if one.uses_engine}

    def of_job(self, job_id: bytes) -> list[InFlight]:
        return [flight for key, flights in self.in_flight.items() if key.job_id == job_id for flight in flights]

    def validate(self) -> None:
        for key, flights in self.in_flight.items():
            assert 1 <= len(flights) <= ATTEMPTS_AT_ONCE
            assert len({flight.node_id for flight in flights}) == len(flights)
            assert all(flight.key == key for flight in flights)
        assert sum(map(len, self._by_node.values())) == sum(map(len, self.in_flight.values())) == self._of_job.total()

    def _moved(self, flight: InFlight, now: float) -> None:
        pace = self._paces.setdefault(flight.node_id, _Pace())
        if flight.uses_engine:  # how long copies take says nothing of it
            pace.moved(now - flight.progressed_at, reads=self._read_meanwhile(flight, pace))
        if flight.reads:
            pace.read_at = now
        pace.moved_at = now
        if pace.strikes:
            pace.strikes = 0
            self.resting.pop(flight.node_id, None)

    def _pace_of(self, node_id: NodeId) -> _Pace:
        """To look at: one that never moved is not remembered."""
        return self._paces.get(node_id) or _Pace()

    def _read_meanwhile(self, flight: InFlight, pace: _Pace) -> bool:
        """Whether anything on its node reads, or did since its last word."""
        return self._anything_reads(flight.node_id) or pace.read_at > flight.progressed_at

    def _anything_reads(self, node_id: NodeId) -> bool:
        return any(flight.reads for flight in self.on_node(node_id))

    def _rest(self, node_id: NodeId, until: float) -> None:
        self.resting[node_id] = max(until, self.resting.get(node_id, until))

    def _hold_back(self, key: TaskKey, now: float) -> None:
        _, times = self.held_back.get(key, (0.0, 0))
        self.held_back[key] = now + min(INPUTS_REST_MAX_S, INPUTS_REST_S * 2**times), min(times + 1, 10)

    def _add(self, flight: InFlight) -> None:
        self.in_flight.setdefault(flight.key, []).append(flight)
        self._by_node.setdefault(flight.node_id, []).append(flight)
        self._of_job[flight.key.job_id] += 1

    def _remove(self, flight: InFlight) -> None:
        _drop(self.in_flight, flight.key, flight)
        _drop(self._by_node, flight.node_id, flight)
        self._of_job[flight.key.job_id] -= 1
        if not self._of_job[flight.key.job_id]:
            del self._of_job[flight.key.job_id]


def _drop(index: dict[K, list[InFlight]], key: K, flight: InFlight) -> None:
    """Take this very attempt out of an index; equal ones stay."""
    kept = [one for one in index[key] if one is not flight]
    if kept:
        index[key] = kept
    else:
        del index[key]


def agent_of(ref: common_pb2.AgentRef) -> Agent:
    return ref.node_id, ref.agent


def key_of_event(event: work_pb2.TaskEvent) -> TaskKey:
    return TaskKey(event.job_id, TaskRef(event.task_index, event.replica))
