"""The leader's questions: each is answered once, by its event, whatever happens."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh import effects, events
from mesh.dispatch import TaskKey
from mesh.ledger import TaskRef
from mesh.wire import common_pb2, facts_pb2, work_pb2
from node.blobs import Blobs
from node.leader import Leader, load_of
from node.plans import Plans
from node.solver_process import SolverProcess
from solver.assemble import to_bytes
from tests.node.engine.engines import running
from tests.node.working import JOB, Posted, blobs_of

NODES = ("a" * 32, "b" * 32)


@asynccontextmanager
async def leading(folder: Path) -> AsyncIterator[tuple[Leader, Posted, Blobs]]:
    posted = Posted()
    solver = SolverProcess(logging.getLogger("test"))
    async with running(echo_tokens_per_s=2000.0) as watched, blobs_of(folder, posted) as blobs:
        leader = Leader(
            posted.post, lambda: watched.engine, blobs, Plans(blobs), solver, lambda node_id: f"name of {node_id}"
        )
        try:
            yield leader, posted, blobs
        finally:
            await leader.close()
            await solver.stop()


def ask(**fields: object) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Why?", panel=2, **fields), seed=3)  # type: ignore[arg-type]


async def test_a_plan_is_made_stored_and_read_again(tmp_path: Path) -> None:
    async with leading(tmp_path) as (leader, posted, blobs):
        leader.make_plan(effects.MakePlan(JOB, ask()))
        made = await posted.first(events.PlanMade)
        assert made.job_id == JOB
        assert [task.replica for task in made.plan.tasks] == [0, 1]
        assert await blobs.get(made.ref) == to_bytes(made.plan)
        leader.read_plan(effects.ReadPlan(made.ref))
        assert (await posted.first(events.PlanRead)).plan == made.plan


async def test_a_request_at_fault_is_final_and_missing_content_is_not(tmp_path: Path) -> None:
    missing = common_pb2.BlobRef(sha256=b"\1" * 32, size_bytes=5)
    cases = [
        (ask(options=["one", "one"]), "bad-options", True),
        (work_pb2.JobRequest(), "bad-request", True),
        (work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=missing)), "blob-missing", False),
    ]
    async with leading(tmp_path) as (leader, posted, _):
        for request, code, final in cases:
            leader.make_plan(effects.MakePlan(JOB, request))
            failed = await posted.first(events.PlanFailed)
            assert (failed.problem.code, failed.final) == (code, final)
            posted.heard.clear()
        leader.read_plan(effects.ReadPlan(missing))
        assert await posted.first(events.PlanRead) == events.PlanRead(missing, None)


async def test_an_engine_that_is_not_there_is_no_fault_of_the_request(tmp_path: Path) -> None:
    posted = Posted()
    async with running() as watched, blobs_of(tmp_path, posted) as blobs:
        solver = SolverProcess(logging.getLogger("test"))
        leader = Leader(posted.post, lambda: watched.engine, blobs, Plans(blobs), solver, str)
        await watched.engine.stop()
        leader.make_plan(effects.MakePlan(JOB, ask()))
        failed = await posted.first(events.PlanFailed)
        assert (failed.problem.code, failed.final) == ("engine-not-ready", False)
        await leader.close()


async def test_damaged_content_is_answered_too(tmp_path: Path) -> None:
    """What nobody foresaw must not leave the machines waiting for ever."""
    async with leading(tmp_path) as (leader, posted, blobs):
        damaged = await blobs.put(b"\xff\xff\xff no message")
        document = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=damaged))
        leader.read_plan(effects.ReadPlan(damaged))
        assert (await posted.first(events.PlanRead)).plan is None
        leader.make_plan(effects.MakePlan(JOB, document))
        failed = await posted.first(events.PlanFailed)
        assert (failed.problem.code, failed.final) == ("internal", True)
        finished = facts_pb2.TaskFinished(result=damaged)
        leader.assemble(effects.Assemble(JOB, ask(), b"p" * 32, work_pb2.Plan(), (finished,)))
        assembled = await posted.first(events.Assembled)
        assert assembled.result is None
        assert assembled.problem is not None


def agent(node_id: str, rate: float, slots_free: int = 1) -> effects.AgentState:
    profile = facts_pb2.AgentProfile(
        agent="default",
        prefill_tokens_per_s=rate,
        decode_tokens_per_s=rate / 10,
        abilities=["generate", "chat"],
        slots=1,
    )
    ref = common_pb2.AgentRef(node_id=node_id, agent="default")
    return effects.AgentState(ref, profile, slots_free, 0, 0, draining=False)


def ready(index: int, *forbidden: str) -> effects.ReadyTask:
    task = work_pb2.Task(
        index=index, prompt_tokens_estimate=100, output_tokens_max=50, answer=work_pb2.Answer(question="?")
    )
    key = TaskKey(JOB, TaskRef(index, 0))
    return effects.ReadyTask(key, task, frozenset((node_id, "default") for node_id in forbidden), "", hedge=False)


def test_what_is_told_of_a_load_counts_before_what_the_profile_says() -> None:
    state = agent(NODES[0], 100.0)
    state.profile.load_wait_seconds = 5.0
    assert load_of(state).load_s == 5.0
    assert load_of(replace(state, load_wait_s=30.0)).load_s == 30.0


@pytest.mark.parametrize("warm", [False, True], ids=["greedy while the solver starts", "cvxpy"])
async def test_a_round_is_placed_with_its_costs_and_runners_up(tmp_path: Path, warm: bool) -> None:
    async with leading(tmp_path) as (leader, posted, _):
        if warm:
            await leader.solver.start()
            assert await leader.solver.wait_ready()
        tasks = (ready(0, NODES[0]), ready(1), ready(2))
        leader.allocate(effects.Allocate(7, tasks, (agent(NODES[0], 100.0), agent(NODES[1], 50.0))))
        allocated = await posted.first(events.Allocated)
    assert allocated.round_number == 7
    assert {key.ref.index: record.agent.node_id for key, record in allocated.placements} == {0: NODES[1], 1: NODES[0]}
    for key, record in allocated.placements:
        assert (record.task_index, record.replica) == (key.ref.index, key.ref.replica)
        assert sum(term.seconds for term in record.terms) == pytest.approx(record.cost_s)
    [second] = [record for key, record in allocated.placements if key.ref.index == 1]
    assert second.runner_up.node_id == NODES[1]
    assert second.runner_up_cost_s > second.cost_s
    [(waiting, why)] = allocated.waiting
    assert waiting == tasks[2].key
    assert why
    assert allocated.method == "greedy" if not warm else "HIGHS" in allocated.method
    assert allocated.bound_s <= allocated.objective_s


async def test_results_are_assembled_with_the_names_of_who_gave_them(tmp_path: Path) -> None:
    async with leading(tmp_path) as (leader, posted, blobs):
        leader.make_plan(effects.MakePlan(JOB, ask()))
        plan = (await posted.first(events.PlanMade)).plan
        results = []
        for replica, text in enumerate(("Because.", "Because.")):
            content = to_bytes(work_pb2.TaskResult(answer=work_pb2.AnswerText(text=text)))
            ref = common_pb2.AgentRef(node_id=NODES[replica], agent="default")
            results.append(
                facts_pb2.TaskFinished(replica=replica, agent=ref, result=await blobs.put(content), model="m")
            )
        leader.assemble(effects.Assemble(JOB, ask(), b"p" * 32, plan, tuple(results)))
        assembled = await posted.first(events.Assembled)
        assert assembled.result is not None
        panel = work_pb2.JobResult.FromString(await blobs.get(assembled.result)).panel
    assert (panel.answer, panel.votes_for) == ("Because.", 2)
    assert [ballot.node_name for ballot in panel.ballots] == [f"name of {node_id}" for node_id in NODES]


async def test_closing_leaves_no_question_running(tmp_path: Path) -> None:
    async with leading(tmp_path) as (leader, posted, _):
        leader.make_plan(effects.MakePlan(JOB, ask()))
        await leader.close()
        await asyncio.sleep(0)
    assert not posted.of(events.PlanMade)
