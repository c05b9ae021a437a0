"""What was finished under another plan is taken over by the plan that counts, and nothing else is."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.dispatch import INPUTS_MISSING, Dispatch, TaskKey
from mesh.effects import Author, Effect
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.ledger import Job, TaskRef
from mesh.standing import standing_of
from mesh.takeover import SAY_AGAIN_S, Takeover
from mesh.task_key import task_key
from mesh.wire import common_pb2, facts_pb2, work_pb2
from tests.mesh.building import BY_ID, B, C, D
from tests.mesh.building import Author as Writer
from tests.mesh.lone import Lone, ref, token
from tests.mesh.working import Desk, World

JOB = b"j" * 32
#: Of two plans of one revision the one with the lesser hash counts.
NOW, OTHER = sorted((ref("a plan"), ref("another plan")), key=lambda plan: plan.sha256)


def plan_of(*questions: str, panel: bool = False, moved: int = 0) -> work_pb2.Plan:
    """A task a question, and one that reads them all; a panel has all questions as replicas of one task."""
    plan = work_pb2.Plan(job_id=JOB)
    for number, question in enumerate(questions):
        task = plan.tasks.add(index=0 if panel else number + moved, replica=number if panel else 0)
        task.answer.question = question
        task.panel = "p" if panel else ""
    last = plan.tasks.add(
        index=len(questions) + moved, depends_on=[] if panel else range(moved, len(questions) + moved)
    )
    last.answer.question = "all"
    return plan


def finished(
    task: work_pb2.Task, inputs: Sequence[bytes] = (), *, plan: common_pb2.BlobRef = OTHER, on: NodeId = B, of: str = ""
) -> facts_pb2.TaskFinished:
    done = facts_pb2.TaskFinished(
        job_id=JOB,
        plan_sha256=plan.sha256,
        task_index=task.index,
        replica=task.replica,
        task_key=task_key(task, inputs),
    )
    done.agent.node_id, done.agent.agent = on, "default"
    done.result.CopyFrom(ref(of or f"result of {task.answer.question}"))
    return done


class Leading:
    """A leader whose job has two plans, of which `NOW` counts."""

    def __init__(self, plan: work_pb2.Plan, revision: int = 0) -> None:
        self.node = Lone(peers=3)
        self.plan = plan
        self.node.says(B, "job_submitted", facts_pb2.JobSubmitted(job_id=JOB))
        for blob, depth in ((NOW, revision), (OTHER, 0)):
            self.node.says(B, "job_planned", facts_pb2.JobPlanned(job_id=JOB, plan=blob, revision=depth, task_count=4))
        self.takeover = Takeover(self.node.replica, self.node.replica.work.copies, Dispatch())

    @property
    def job(self) -> Job:
        return self.node.replica.ledger.jobs[JOB]

    def say(self, *facts: facts_pb2.TaskFinished) -> None:
        for fact in facts:
            self.node.says(B, "task_finished", fact)

    def take(self, now: float = 0.0) -> tuple[list[facts_pb2.TaskFinished], list[TaskRef]]:
        """What is said, and which tasks are left to be done."""
        ready = standing_of(self.job, self.plan, NOW.sha256).ready
        effects, left = self.takeover.take(self.job, ready, token(3, self.node.me), now)
        return contents(effects), [one.key.ref for one in left]


def contents(effects: Sequence[Effect]) -> list[facts_pb2.TaskFinished]:
    return [effect.content for effect in effects if isinstance(effect, Author)]  # type: ignore[misc]


def test_a_result_of_the_same_task_under_another_number_is_taken_over_as_it_was_said() -> None:
    other = plan_of("x", "y", moved=5)
    leading = Leading(plan_of("y", "z"))
    leading.say(finished(other.tasks[0]), finished(other.tasks[1], on=C))
    [taken], left = leading.take()
    assert (taken.task_index, taken.plan_sha256, taken.result) == (0, NOW.sha256, ref("result of y"))
    assert (taken.agent.node_id, taken.token.leader_id) == (C, leading.node.me)
    assert taken.taken_from in leading.job.finished
    assert left == [TaskRef(1, 0)]


def test_a_word_on_its_way_is_not_said_again_until_it_must_be_lost() -> None:
    leading = Leading(plan_of("y"))
    leading.say(finished(leading.plan.tasks[0]))
    assert [len(part) for part in leading.take(0.0)] == [1, 0]
    assert [len(part) for part in leading.take(SAY_AGAIN_S - 1)] == [0, 0]
    [taken], _ = leading.take(SAY_AGAIN_S + 1)
    leading.say(taken)
    leading.takeover.folded(TaskKey(JOB, TaskRef(0, 0)))
    assert leading.job.results()[TaskRef(0, 0)].result == taken.result
    assert leading.take(SAY_AGAIN_S + 2) == ([], [TaskRef(1, 0)])


def test_inputs_decide_whether_a_later_task_is_the_same() -> None:
    leading = Leading(plan_of("x", "y"))
    last = leading.plan.tasks[2]
    read = [ref(f"result of {question}").sha256 for question in "xy"]
    leading.say(finished(last, read), finished(last, read[::-1], of="of other inputs"))
    assert leading.take() == ([], [TaskRef(0, 0), TaskRef(1, 0)])
    leading.say(*(finished(task, plan=NOW) for task in leading.plan.tasks[:2]))
    [taken], left = leading.take()
    assert (taken.task_index, taken.result, left) == (2, ref("result of all"), [])


def test_failures_and_results_without_a_key_are_not_taken_over() -> None:
    leading = Leading(plan_of("x", "y"))
    failed, old = finished(leading.plan.tasks[0]), finished(leading.plan.tasks[1])
    failed.failure.code = "engine-crashed"
    old.task_key = b""
    leading.say(failed, old)
    assert leading.take() == ([], [TaskRef(0, 0), TaskRef(1, 0)])


def test_a_panel_gets_nobodys_second_voice() -> None:
    leading = Leading(plan_of("x", "x", "x", panel=True))
    one, two, three, _ = leading.plan.tasks
    leading.say(finished(one, on=B, plan=NOW), finished(two, on=B), finished(three, on=C))
    taken, left = leading.take()
    assert [(done.replica, done.agent.node_id) for done in taken] == [(2, C)]
    assert TaskRef(0, 1) not in left, "it waits until it is known who sits on the panel"
    leading.say(*taken)
    leading.takeover.folded(TaskKey(JOB, TaskRef(0, 2)))
    assert leading.take() == ([], [TaskRef(0, 1), TaskRef(3, 0)])


def test_a_deeper_plan_takes_only_what_somebody_in_sight_holds_and_nobody_missed() -> None:
    leading = Leading(plan_of("x", "y", "z"), revision=1)
    leading.say(*(finished(task) for task in leading.plan.tasks[:3]))
    copies = leading.node.replica.work.copies
    for question in ("x", "y"):
        copies.held[ref(f"result of {question}").sha256] = 10
    leading.takeover.unreadable(JOB, [ref("result of y").sha256])
    taken, left = leading.take()
    assert [done.result for done in taken] == [ref("result of x")]
    assert left == [TaskRef(1, 0), TaskRef(2, 0)]


def test_what_runs_for_another_plan_is_stopped_unless_its_key_is_wanted() -> None:
    leading = Leading(plan_of("x", "y"))
    other = plan_of("x", "q")
    dispatch = leading.takeover.dispatch
    for task, node in zip(other.tasks, (B, C, D), strict=True):
        agent = common_pb2.AgentRef(node_id=node, agent="default")
        key = TaskKey(JOB, TaskRef(task.index, 0))
        dispatch.assigned(key, OTHER.sha256, agent, 0.0, 1, 1, task_key(task, []))
    ready = standing_of(leading.job, leading.plan, NOW.sha256).ready
    assert [flight.node_id for flight in leading.takeover.of_no_use(leading.job, ready)] == [C]
    leading.say(finished(leading.plan.tasks[0], plan=NOW))
    ready = standing_of(leading.job, leading.plan, NOW.sha256).ready
    assert [flight.node_id for flight in leading.takeover.of_no_use(leading.job, ready)] == [B, C]


_said = st.tuples(st.sampled_from("xyzall"), st.sampled_from([B, C, D]), st.integers(0, 2), st.integers(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(_said, max_size=8), st.randoms(use_true_random=False), st.booleans())
def test_what_is_taken_over_depends_on_the_facts_alone_and_is_true(
    said: list[tuple[str, NodeId, int, int]], shuffled: random.Random, panel: bool
) -> None:
    plan = plan_of("x", "y", "x", panel=panel)
    facts: list[Fact] = []
    writers = {key.node_id: Writer(key, incarnation=9) for key in BY_ID}
    for question, node, replica, of_now in said:
        task = work_pb2.Task(index=of_now, replica=replica)
        task.answer.question = question
        done = finished(task, plan=NOW if of_now and task.replica == 0 else OTHER, on=node, of=f"{question} of {node}")
        facts.append(writers[node].say("task_finished", done))
    read = []
    for order in (facts, shuffled.sample(facts, len(facts))):
        leading = Leading(plan)
        for fact in order:
            leading.node.replica.ledger.apply(fact)
        taken, left = leading.take()
        assert not {TaskRef(done.task_index, done.replica) for done in taken} & set(left)
        results = leading.job.results()
        for done in taken:
            source = leading.job.finished[done.taken_from][1]
            assert (source.result, source.agent, source.task_key) == (done.result, done.agent, done.task_key)
            task = next(one for one in plan.tasks if (one.index, one.replica) == (done.task_index, done.replica))
            inputs = [results[TaskRef(index, 0)].result.sha256 for index in task.depends_on]
            assert source.task_key == task_key(task, inputs)
            if task.panel:
                seated = [one.agent for ref_, one in results.items() if ref_.index == task.index]
                assert done.agent not in seated
        read.append((taken, left))
    assert read[0] == read[1]


# In a mesh


def runs_of(world: World) -> Counter[int]:
    """How often each task was started, by its seed."""
    return Counter(assign.task.seed for desk in world.desks for _, assign in desk.started)


@pytest.mark.parametrize("lost", [0, 2])
def test_after_a_loss_only_what_was_lost_is_done_again(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of one task of four is gone from every disk when the answer is put together."""
    monkeypatch.setattr("mesh.coordinator.LOST_AFTER_S", 40.0)
    world = World()
    leader = world.ready()
    job_id = leader.submit(tasks=4)
    world.until(lambda: TaskRef(lost, 0) in leader.job(job_id).results())
    gone = leader.job(job_id).results()[TaskRef(lost, 0)].result.sha256
    for desk in world.desks:
        desk.blobs.pop(gone, None)
    world.until(lambda: world.completed_everywhere(job_id), 90.0)
    assert runs_of(world) == {seed: 1 + (seed == lost) for seed in range(4)}
    plan = leader.job(job_id).plan
    assert plan is not None
    assert plan.revision == 2
    taken = [one for _, one in leader.job(job_id).finished.values() if one.taken_from]
    assert sorted(one.task_index for one in taken) == [index for index in range(4) if index != lost]


def test_a_loss_that_mended_itself_is_no_reason_to_plan_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.coordinator.LOST_AFTER_S", 10.0)
    world = World(task_s=6.0)
    leader = world.ready()
    for desk in world.desks:
        desk.fails = lambda task: world.now < began + 8.0
        desk.failure_code = INPUTS_MISSING
    began = world.now
    job_id = leader.submit(tasks=6, chain=True)
    world.until(lambda: world.completed_everywhere(job_id))
    assert len(leader.job(job_id).plans) == 1


def cut_in_two(world: World) -> tuple[list[Desk], list[Desk]]:
    """Four nodes, two and two, each side with a leader of its own, whose plans number the tasks otherwise."""
    sides = world.desks[:2], world.desks[2:]
    for one in sides[0]:
        for other in sides[1]:
            world.set_cut(one, other, noticed=True)
    for desk in sides[1]:
        desk.plans_backwards = True
    world.until(lambda: all(_led(side) for side in sides))
    return sides


def _led(side: list[Desk]) -> bool:
    tokens = [desk.replica.election.leader for desk in side]
    ids = {desk.me for desk in side}
    return all(one is not None and one == tokens[0] and one.leader_id in ids for one in tokens)


@pytest.mark.parametrize("healed_after_s", [2.0, 3.4, 5.1])
def test_two_sides_of_a_cut_put_their_work_together(healed_after_s: float) -> None:
    world = World(nodes=4)
    world.ready()
    sides = cut_in_two(world)
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="on both sides", panel=12))
    submitted = facts_pb2.JobSubmitted(job_id=JOB, request=request, client_key=b"k")
    for side in sides:
        side[0].resubmit(submitted)
    world.run(healed_after_s)
    jobs = [side[0].job(JOB) for side in sides]
    assert jobs[0].plan != jobs[1].plan
    done = {one.task_key for job in jobs for _, one in job.finished.values()}
    before = runs_of(world)
    world.heal()
    world.until(lambda: world.completed_everywhere(JOB))
    # The end has come everywhere; of tasks that both sides did, the other result may still be on its way.
    job, *others = [desk.job(JOB) for desk in world.desks]
    world.until(lambda: all(other.results() == job.results() for other in others))
    assert any(one.taken_from for _, one in job.finished.values())
    again = [seed for seed, count in (runs_of(world) - before).items() if _key(seed) in done]
    assert not again, "what one side had done when they met is done by nobody again"


def _key(seed: int) -> bytes:
    task = work_pb2.Task(seed=seed)
    task.answer.question = "on both sides"
    return task_key(task, [])
