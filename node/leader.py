"""What takes a leader's time, carried out: plans, the solver, assembling results.

Idea: what to plan, allocate and end is decided by mesh/coordinator.py; each of its questions becomes one asyncio task
here, and one event that answers it, whatever happens.

Does not: decide anything, or remember anything between two questions.
"""

from collections.abc import Callable, Coroutine

from mesh import effects, events
from mesh.dispatch import TaskKey
from mesh.surroundings import TASK_ABILITY
from mesh.wire import common_pb2, facts_pb2, work_pb2
from node.abilities import offered
from node.background import Background
from node.blobs import Blobs
from node.counting import Counter
from node.errors import KithError
from node.logs import log, where
from node.planning import make_plan
from node.plans import Plans
from node.solver_process import SolverProcess
from solver.allocation import Assigned
from solver.assemble import assemble, to_bytes
from solver.costs import AgentLoad, TaskNeed

#: The request itself is at fault: no node will ever plan it. All other trouble passes.
FINAL_CODES = frozenset({"bad-document", "bad-request", "bad-options", "prompt-too-long"})

Answer = Callable[[], Coroutine[None, None, events.Event]]


class Leader:
    def __init__(
        self,
        post: Callable[[events.Event], None],
        counter: Callable[[], Counter],
        blobs: Blobs,
        plans: Plans,
        solver: SolverProcess,
        name_of: Callable[[str], str],
    ) -> None:
        self._post = post
        self._counter = counter
        self._blobs = blobs
        self._plans = plans
        self.solver = solver
        self._name_of = name_of
        self._questions = Background()

    def make_plan(self, effect: effects.MakePlan) -> None:
        self._answer(lambda: self._plan(effect), lambda problem: events.PlanFailed(effect.job_id, problem, final=True))

    def read_plan(self, effect: effects.ReadPlan) -> None:
        self._answer(lambda: self._read(effect), lambda _: events.PlanRead(effect.ref, None))

    def allocate(self, effect: effects.Allocate) -> None:
        def failed(problem: common_pb2.Problem) -> events.Event:
            waiting = tuple((ready.key, problem.message) for ready in effect.tasks)
            return events.Allocated(effect.round_number, (), waiting, method="none", method_reason=problem.message)

        self._answer(lambda: self._allocate(effect), failed)

    def assemble(self, effect: effects.Assemble) -> None:
        self._answer(
            lambda: self._assemble(effect),
            lambda problem: events.Assembled(effect.job_id, effect.plan_sha256, None, problem),
        )

    async def close(self) -> None:
        await self._questions.cancel()

    def _answer(self, answer: Answer, on_crash: Callable[[common_pb2.Problem], events.Event]) -> None:
        """Post what `answer` yields; where it fails by a programmer's error, what `on_crash` makes of that."""

        async def run() -> None:
            try:
                event = await answer()
            except Exception as error:
                log("error", f"leading: {where(error)}")
                message = f"{type(error).__name__} in the node's own code"
                event = on_crash(common_pb2.Problem(code="internal", message=message, remedy="Please report it."))
            self._post(event)

        self._questions.spawn(run(), "leader")

    async def _plan(self, effect: effects.MakePlan) -> events.Event:
        try:
            document = await self._document(effect.request)
            plan = await make_plan(effect.job_id, effect.request, document, self._counter())
            plan.revision = effect.revision
            ref = await self._blobs.put(to_bytes(plan))
        except KithError as error:
            return events.PlanFailed(effect.job_id, error.to_wire(), final=error.code in FINAL_CODES)
        log("debug", f"job {effect.job_id.hex()[:12]} has a plan of {len(plan.tasks)} tasks")
        return events.PlanMade(effect.job_id, ref, plan)

    async def _read(self, effect: effects.ReadPlan) -> events.Event:
        try:
            return events.PlanRead(effect.ref, await self._plans.get(effect.ref))
        except KithError:
            return events.PlanRead(effect.ref, None)

    async def _allocate(self, effect: effects.Allocate) -> events.Event:
        keys = {task_id(ready.key): ready.key for ready in effect.tasks}
        allocation = await self.solver.allocate(
            [load_of(state) for state in effect.agents], [need_of(ready) for ready in effect.tasks]
        )
        reasons = [*allocation.waiting.items(), *allocation.infeasible.items()]
        return events.Allocated(
            effect.round_number,
            placements=tuple((keys[one.task_id], record_of(keys[one.task_id], one)) for one in allocation.assignments),
            waiting=tuple((keys[name], reason) for name, reason in reasons),
            method=allocation.method,
            method_reason=allocation.method_reason,
            objective_s=allocation.objective_s,
            bound_s=allocation.bound_s,
            solve_seconds=allocation.solve_seconds,
        )

    async def _assemble(self, effect: effects.Assemble) -> events.Event:
        reading = b""
        try:
            results, agents = {}, {}
            for finished in effect.results:
                reading = finished.result.sha256
                place = (finished.task_index, finished.replica)
                results[place] = work_pb2.TaskResult.FromString(await self._blobs.get(finished.result))
                agents[place] = (finished.agent, self._name_of(finished.agent.node_id), finished.model)
            reading = b""
            document = await self._document(effect.request)
            content = to_bytes(assemble(effect.request, effect.plan, results, agents, document))
            ref = await self._blobs.put(content)
        except KithError as error:
            return events.Assembled(effect.job_id, effect.plan_sha256, None, error.to_wire(), reading)
        return events.Assembled(effect.job_id, effect.plan_sha256, ref)

    async def _document(self, request: work_pb2.JobRequest) -> str | None:
        """The text that a summary is about. Raises `KithError` (`blob-missing`)."""
        if request.WhichOneof("kind") != "summarize":
            return None
        return (await self._blobs.get(request.summarize.document)).decode()


# Between the machine's words and the solver's


def task_id(key: TaskKey) -> str:
    return f"{key.job_id.hex()}/{key.ref.index}/{key.ref.replica}"


def agent_id(node_id: str, agent: str) -> str:
    return f"{node_id}/{agent}"


def agent_ref(text: str) -> common_pb2.AgentRef:
    node_id, _, agent = text.partition("/")
    return common_pb2.AgentRef(node_id=node_id, agent=agent)


def load_of(state: effects.AgentState) -> AgentLoad:
    profile = state.profile
    return AgentLoad(
        agent_id=agent_id(state.agent.node_id, state.agent.agent),
        prefill_tokens_per_s=profile.prefill_tokens_per_s,
        decode_tokens_per_s=profile.decode_tokens_per_s,
        queued_prompt_tokens=state.queued_prompt_tokens,
        queued_output_tokens=state.queued_output_tokens,
        context_tokens=profile.context_tokens,
        slots_free=state.slots_free,
        abilities=offered(profile.abilities),
        model=profile.model,
        draining=state.draining,
        load_s=state.load_wait_s or profile.load_wait_seconds,
    )


def need_of(ready: effects.ReadyTask) -> TaskNeed:
    task = ready.task
    return TaskNeed(
        task_id=task_id(ready.key),
        prompt_tokens=task.prompt_tokens_estimate,
        output_tokens=task.output_tokens_max,
        ability=TASK_ABILITY,
        forbidden_agents=frozenset(agent_id(node_id, agent) for node_id, agent in ready.forbidden),
        panel=ready.panel,
    )


def record_of(key: TaskKey, assigned: Assigned) -> facts_pb2.AssignmentRecord:
    record = facts_pb2.AssignmentRecord(
        task_index=key.ref.index,
        replica=key.ref.replica,
        agent=agent_ref(assigned.agent_id),
        cost_s=assigned.cost_s,
        terms=[facts_pb2.CostTerm(name=name, seconds=seconds) for name, seconds in assigned.terms.items()],
    )
    if assigned.runner_up_agent:
        record.runner_up.CopyFrom(agent_ref(assigned.runner_up_agent))
        record.runner_up_cost_s = assigned.runner_up_cost_s
    return record
