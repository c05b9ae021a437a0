"""Who gets which task: what the solver is asked, and what is made of its answer.

Idea: one round at a time. It offers the ready tasks, and those in flight that do not move a second time as hedges, with
the state of every agent in view; the world may move while the solver thinks, so each placement is checked again before
it is commanded. Each round is journaled, with what `explain` prints; hedges are journaled apart.

The solver serves the earlier tasks of a round first. A task whose node is lost keeps its turn. One that is merely late
may yet end where it is, so it comes after all that never started: its copy gets what they leave, until its lease ends.

An agent gets nothing while its node drains, rests, stalls or holds something late that does not move.

Does not: know when a task is ready (coordinator.py), or compute costs (solver/).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mesh.agent_load import load_of_agent
from mesh.dispatch import Agent, Dispatch, InFlight, TaskKey, agent_of
from mesh.effects import AgentState, Allocate, Author, Effect, Log, ReadyTask, Send
from mesh.events import Allocated
from mesh.facts import FACT_BYTES_MAX
from mesh.identity import NodeId
from mesh.ledger import Job, TaskRef
from mesh.quarantine import Quarantine
from mesh.surroundings import Surroundings, task_agents
from mesh.task_key import task_key
from mesh.wire import common_pb2, facts_pb2, mesh_pb2, work_pb2

#: A round that is not answered after so long is given up: the next may begin.
ROUND_LOST_S = 30.0
#: Tasks given to one allocation round.
ROUND_TASKS_MAX = 256
#: Assignments in one fact, so that it stays below the size limit with all its cost terms.
RECORDS_PER_FACT = FACT_BYTES_MAX // 512
#: What a task waits for that is to run alone, in words.
ITS_OWN = "an engine to itself"
#: How a hedge's round is named in the journal.
HEDGE = "hedge"


@dataclass(frozen=True)
class Ready:
    """A task of an open job that has no result, and whose inputs are there."""

    job: Job
    plan_sha256: bytes
    task: work_pb2.Task
    inputs: tuple[common_pb2.BlobRef, ...]
    failed_on: frozenset[Agent]
    alone: bool = False  # it runs with nothing beside it (quarantine.py)

    @property
    def key(self) -> TaskKey:
        return TaskKey(self.job.job_id, TaskRef(self.task.index, self.task.replica))

    @cached_property
    def task_key(self) -> bytes:
        return task_key(self.task, [ref.sha256 for ref in self.inputs])


@dataclass
class _Round:
    number: int
    token: common_pb2.FencingToken
    began_at: float
    tasks: dict[TaskKey, tuple[Ready, str]]  # with why it is a hedge; empty: it is none


@dataclass
class Placement:
    """Invariant: at most one round is under way."""

    around: Surroundings
    dispatch: Dispatch
    #: Why an open job does not move, in words.
    waiting_for: dict[bytes, str]
    quarantine: Quarantine = field(init=False)
    under_way: _Round | None = None
    _rounds: int = 0
    _rounds_of: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quarantine = Quarantine(self.dispatch)

    def reset(self) -> None:
        """A new leadership. A round under way is answered to nobody."""
        self._rounds_of.clear()
        self.quarantine.reset()

    def job_ended(self, job_id: bytes) -> None:
        self._rounds_of.pop(job_id, None)

    # Asking

    def ask(self, ready: Sequence[Ready], token: common_pb2.FencingToken, now: float) -> list[Effect]:
        """A round over what is ready and what is late, if an agent has room for any of it."""
        if self.under_way is not None and now < self.under_way.began_at + ROUND_LOST_S:
            return []
        first, merely_late = self._in_turn(ready, now)
        in_turn = first + merely_late
        wanting = {one.key for one, why_late in in_turn if why_late or not self.dispatch.of_task(one.key)}
        alone = [one.key for one in ready if one.alone]
        in_need = [one.key for one, _ in first if one.key in wanting and not self.dispatch.is_held_back(one.key, now)]
        self.quarantine.begin(alone, in_need, self._take_work(now) if alone or self.quarantine.alone else ())
        in_turn.sort(key=lambda turn: self.quarantine.rank(turn[0].key))
        agents = self._agents(now)
        free = {agent_of(state.agent) for state in agents if state.slots_free and not state.draining}
        everybody = {agent_of(state.agent) for state in agents}
        tasks: list[ReadyTask] = []
        chosen: dict[TaskKey, tuple[Ready, str]] = {}
        for one, why_late in in_turn:
            if one.key not in wanting or len(tasks) >= ROUND_TASKS_MAX:
                continue
            flights = self.dispatch.of_task(one.key)
            if not flights and self.dispatch.is_held_back(one.key, now):
                self.waiting_for.setdefault(one.job.job_id, "a node that holds what its tasks read")
                continue
            if one.key in self.quarantine.queued:
                if not self.dispatch.runs(one.job.job_id):
                    self.waiting_for[one.job.job_id] = ITS_OWN
                continue
            own = self._forbidden(one, flights, everybody)
            forbidden = self.quarantine.offer(one.key, own, free)
            if not flights and not self.dispatch.runs(one.job.job_id):
                why = "a free agent" if agents else "an agent: no engine that writes is ready yet"
                self.waiting_for[one.job.job_id] = ITS_OWN if self.quarantine.waits(one.key) else why
            if free <= forbidden and (flights or not free or self.quarantine.waits(one.key)):
                continue  # it can not help now
            panel = f"{one.job.job_id.hex()}/{one.task.panel}" if one.task.panel else ""
            tasks.append(ReadyTask(one.key, one.task, frozenset(forbidden), panel, bool(flights)))
            chosen[one.key] = (one, why_late)
        if not tasks:
            return []
        self._rounds += 1
        self.under_way = _Round(self._rounds, token, now, chosen)
        return [Allocate(self._rounds, tuple(tasks), tuple(agents))]

    def _agents(self, now: float) -> list[AgentState]:
        states = []
        for node_id in sorted(self.around.membership.view()):
            agents = task_agents(self.around, node_id)
            flights = self.dispatch.on_node(node_id) if agents else []
            load = self.around.membership.load_of(node_id)
            shut = self._is_shut(node_id, now)
            for agent in agents:
                own = [flight for flight in flights if flight.agent.agent == agent.agent and flight.uses_engine]
                room = self.quarantine.room((node_id, agent.agent), max(0, agent.slots - len(own)))
                states.append(
                    AgentState(
                        agent=common_pb2.AgentRef(node_id=node_id, agent=agent.agent),
                        profile=agent,
                        slots_free=0 if shut else room,
                        queued_prompt_tokens=sum(_prompt_left(flight) for flight in own),
                        queued_output_tokens=sum(_output_left(flight) for flight in own),
                        draining=load.draining,
                        load_wait_s=load_of_agent(load, agent.agent).load_wait_seconds,
                    )
                )
        return states

    def _is_shut(self, node_id: NodeId, now: float) -> bool:
        """Whether no agent of this node gets anything for now."""
        stalled = self.around.membership.load_of(node_id).engine_stalled
        return stalled or self.dispatch.rests(node_id, now) or self.dispatch.is_stuck(node_id, now)

    def _take_work(self, now: float) -> set[Agent]:
        """The agents that may get any now."""
        return {
            (node_id, one.agent)
            for node_id in self.around.membership.view()
            if not self.around.membership.load_of(node_id).draining and not self._is_shut(node_id, now)
            for one in task_agents(self.around, node_id)
        }

    def _in_turn(self, ready: Iterable[Ready], now: float) -> tuple[list[tuple[Ready, str]], list[tuple[Ready, str]]]:
        """Who is served first, and the merely late; each with why it needs a second copy: empty where it needs none."""
        first: list[tuple[Ready, str]] = []
        last: list[tuple[Ready, str]] = []
        for one in ready:
            why, merely_late = self._why_late(self.dispatch.of_task(one.key), now)
            (last if merely_late else first).append((one, why))
        return first, last

    def _why_late(self, flights: Sequence[InFlight], now: float) -> tuple[str, bool]:
        """Why a task needs a second copy, empty where it moves or has one already; and whether it is merely late."""
        if len(flights) != 1:
            return "", False
        [flight] = flights
        if why_lost := self._why_lost(flight):
            return why_lost, False
        why_late = self.dispatch.why_late(flight, now)
        return why_late, bool(why_late)

    def _why_lost(self, flight: InFlight) -> str:
        if flight.node_id not in self.around.membership.view():
            return "its node is suspected"
        if self.around.membership.load_of(flight.node_id).engine_stalled:
            return "the engine of its node does not move"
        return ""

    def _forbidden(self, one: Ready, flights: Iterable[InFlight], everybody: set[Agent]) -> set[Agent]:
        taken = {agent_of(flight.agent) for flight in flights}
        if one.task.panel:
            # Members of a panel sit on distinct agents, those that answered or are answering included.
            index = one.task.index
            taken |= {agent_of(done.agent) for ref, done in one.job.results().items() if ref.index == index}
            in_flight = self.dispatch.of_job(one.job.job_id)
            taken |= {agent_of(flight.agent) for flight in in_flight if flight.key.ref.index == index}
        if one.failed_on | taken >= everybody:
            return taken  # it failed wherever it may run: try again where it failed
        return taken | one.failed_on

    # Answered

    def answered(self, event: Allocated, token: common_pb2.FencingToken | None, now: float) -> list[Effect]:
        """Command what still makes sense, and journal it."""
        asked = self.under_way
        if asked is None or event.round_number != asked.number:
            return []
        self.under_way = None
        if token is None or token != asked.token:
            return []
        for key, reason in event.waiting:
            if not self.dispatch.runs(key.job_id):
                self.waiting_for[key.job_id] = reason
        effects: list[Effect] = []
        firsts: dict[bytes, list[facts_pb2.AssignmentRecord]] = {}
        hedges: dict[bytes, list[tuple[facts_pb2.AssignmentRecord, str]]] = {}
        for key, record in sorted(event.placements, key=lambda placed: self.quarantine.rank(placed[0])):
            ready, why_late = asked.tasks.get(key, (None, ""))
            if ready is None or not self._still_makes_sense(ready, record.agent, bool(why_late), now):
                continue
            if not self.quarantine.may_start(key, agent_of(record.agent)):
                if key in self.quarantine.alone and not self.dispatch.runs(key.job_id):
                    self.waiting_for[key.job_id] = ITS_OWN
                continue
            effects += self._command(ready, record.agent, token, now)
            if why_late:
                hedges.setdefault(key.job_id, []).append((record, why_late))
                effects.append(Log("info", f"{key.label} gets a second copy: {why_late}"))
            else:
                firsts.setdefault(key.job_id, []).append(record)
        for job_id, records in firsts.items():
            effects += self._journal(job_id, records, event, token)
        for job_id, late in hedges.items():
            effects += self._journal_hedges(job_id, late, event, token)
        return effects

    def _still_makes_sense(self, ready: Ready, agent: common_pb2.AgentRef, hedge: bool, now: float) -> bool:
        key, job = ready.key, ready.job
        flights = self.dispatch.of_task(key)
        return (
            not job.closed
            and job.plan is not None
            and job.plan.plan.sha256 == ready.plan_sha256
            and key.ref not in job.results()
            and bool(flights) == hedge
            and (not hedge or bool(self._why_late(flights, now)[0]))
            and self.dispatch.may_start(key, NodeId(agent.node_id))
            and agent.node_id in self.around.membership.view()
        )

    def _command(
        self, ready: Ready, agent: common_pb2.AgentRef, token: common_pb2.FencingToken, now: float
    ) -> list[Effect]:
        task = ready.task
        attempt = self.dispatch.assigned(
            ready.key,
            ready.plan_sha256,
            agent,
            now,
            task.prompt_tokens_estimate,
            task.output_tokens_max,
            ready.task_key,
        )
        self.waiting_for.pop(ready.job.job_id, None)
        assign = work_pb2.Assign(
            token=token,
            job_id=ready.job.job_id,
            plan_sha256=ready.plan_sha256,
            task=task,
            inputs=ready.inputs,
            attempt=attempt,
            agent=agent,
        )
        return [
            Log("debug", f"{ready.key.label} goes to {agent.node_id[:8]}"),
            Send(NodeId(agent.node_id), mesh_pb2.LinkMessage(assign=assign)),
        ]

    def _journal(
        self,
        job_id: bytes,
        records: Sequence[facts_pb2.AssignmentRecord],
        event: Allocated,
        token: common_pb2.FencingToken,
    ) -> list[Effect]:
        self._rounds_of[job_id] = self._rounds_of.get(job_id, 0) + 1
        return [
            Author(
                "job_assigned",
                facts_pb2.JobAssigned(
                    job_id=job_id,
                    token=token,
                    round=self._rounds_of[job_id],
                    assignments=records[start : start + RECORDS_PER_FACT],
                    method=event.method,
                    method_reason=event.method_reason,
                    objective_s=event.objective_s,
                    bound_s=event.bound_s,
                    solve_seconds=event.solve_seconds,
                ),
            )
            for start in range(0, len(records), RECORDS_PER_FACT)
        ]

    def _journal_hedges(
        self,
        job_id: bytes,
        late: Sequence[tuple[facts_pb2.AssignmentRecord, str]],
        event: Allocated,
        token: common_pb2.FencingToken,
    ) -> list[Effect]:
        by_reason: dict[str, list[facts_pb2.AssignmentRecord]] = {}
        for record, why in late:
            by_reason.setdefault(why, []).append(record)
        effects: list[Effect] = []
        for why, records in by_reason.items():
            named = Allocated(event.round_number, (), (), HEDGE, f"{why}; placed by {event.method}")
            effects += self._journal(job_id, records, named, token)
        return effects


def _prompt_left(flight: InFlight) -> int:
    return max(0, flight.prompt_tokens - (flight.progress.prompt_tokens_done if flight.progress else 0))


def _output_left(flight: InFlight) -> int:
    return max(0, flight.output_tokens - (flight.progress.output_tokens if flight.progress else 0))
