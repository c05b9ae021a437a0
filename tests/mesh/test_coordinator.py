"""Jobs from end to end on replicas in memory: what the leader decides, and what its jobs survive."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import effects, events
from mesh.coordinator import RETRY_S
from mesh.dispatch import INPUTS_MISSING, INPUTS_REST_MAX_S, LATE_S, LEASE_S
from mesh.ledger import CANCELLED, FAILED, TaskRef
from mesh.placement import HEDGE
from mesh.standing import FAILURES_MAX
from mesh.telling import PROGRESS_EVERY_S
from mesh.wire import facts_pb2
from tests.mesh.working import WALL_MS, Desk, World


def hedges(desk: Desk, job_id: bytes) -> list[tuple[int, str, str]]:
    """(task, node, why) of every second copy in the journal."""
    return [
        (record.task_index, record.agent.node_id, fact.body.job_assigned.method_reason)
        for fact in desk.says("job_assigned", job_id)
        for record in fact.body.job_assigned.assignments
        if fact.body.job_assigned.method == HEDGE
    ]


def starts(world: World) -> Counter[int]:
    return Counter(assign.task.index for desk in world.desks for _, assign in desk.started)


def busy(world: World, *desks: Desk) -> None:
    """Until each of these works on something, and a little longer."""
    world.until(lambda: all(desk.engine.running for desk in desks))
    world.run(0.3)
    world.until(lambda: all(desk.engine.running for desk in desks))


# The way of a job


def test_a_job_is_planned_done_by_all_and_completed_with_copies() -> None:
    world = World()
    leader = world.ready()
    job_id = world.desks[0].submit(tasks=6, document=b"text")
    world.until(lambda: any(desk.job(job_id).closed for desk in world.desks))
    [(said, completed)] = leader.job(job_id).completed.values()
    assert said.author == leader.me
    assert all(completed.result.sha256 in desk.blobs for desk in world.desks), "its copies come first"
    assert completed.token == leader.replica.election.leader
    assert (completed.record.tasks, completed.record.accepted_by) == (6, world.desks[0].me)
    assert {desk.me for desk in world.desks if desk.started} == {desk.me for desk in world.desks}
    assert set(starts(world).values()) == {1}
    [answer] = world.desks[0].answers.values()
    assert (answer.copies, answer.wanted) == (3, 3)
    world.until(lambda: world.completed_everywhere(job_id))


def test_a_task_gets_the_results_of_those_it_depends_on() -> None:
    world = World()
    job_id = world.ready().submit(tasks=4, chain=True)
    world.until(lambda: world.completed_everywhere(job_id))
    results = world.desks[0].job(job_id).results()
    for desk in world.desks:
        for _, assign in desk.started:
            index = assign.task.index
            expected = [results[TaskRef(index - 1, 0)].result] if index else []
            assert list(assign.inputs) == expected


def test_jobs_share_the_agents_and_none_starves() -> None:
    world = World(slots=2)
    leader = world.ready()
    jobs = [desk.submit(tasks=8) for desk in world.desks]
    took = world.until(lambda: all(leader.job(job_id).closed for job_id in jobs))
    assert took < 24 / 6 + 2.0, "24 tasks of a second in six slots"


def test_one_node_alone_does_a_job() -> None:
    world = World(nodes=1)
    job_id = world.ready().submit(tasks=3, document=b"text")
    assert world.until(lambda: world.completed_everywhere(job_id)) < 4.5


def test_a_plan_that_can_not_be_made_now_is_tried_again_and_one_that_never_can_fails_the_job() -> None:
    world = World()
    leader = world.ready()
    leader.no_plan = [False]
    job_id = leader.submit()
    world.run(1.0)
    assert leader.replica.work.coordinator.waiting_for[job_id] == "no plan can be made"
    assert world.until(lambda: world.completed_everywhere(job_id)) > RETRY_S - 1.0
    leader.no_plan = [True]
    job_id = leader.submit()
    world.until(lambda: all(desk.job(job_id).state == FAILED for desk in world.desks))
    [(_, failed)] = leader.job(job_id).failed.values()
    assert [reason.code for reason in failed.reasons] == ["bad-document"]


def test_everyone_hears_what_runs_but_not_more_than_twice_a_second() -> None:
    world = World()
    leader = world.ready()
    began = world.now
    job_id = leader.submit(tasks=9)
    world.until(lambda: world.completed_everywhere(job_id))
    for desk in world.desks:
        assert 2 <= len(desk.told) <= (world.now - began) / PROGRESS_EVERY_S + 1
        assert any(len(progress.running) == 3 and progress.tasks_total == 9 for progress in desk.told)


def test_people_hear_why_nothing_runs() -> None:
    world = World()
    leader = world.ready()
    for desk in world.desks:
        desk.replica.work.intake.draining = True
        desk.do(events.Draining())
    job_id = leader.submit(tasks=1)
    world.run(3.0)
    assert [desk.told[-1].waiting_for != "" for desk in world.desks] == [True] * 3
    assert not starts(world)
    assert not leader.job(job_id).closed


# Ends


def test_a_task_that_fails_on_three_nodes_fails_its_job_with_the_reasons() -> None:
    world = World()
    leader = world.ready()
    for desk in world.desks:
        desk.fails = lambda task: task.index == 1
    job_id = leader.submit(tasks=3)
    world.until(lambda: all(desk.job(job_id).state == FAILED for desk in world.desks))
    [(_, failed)] = leader.job(job_id).failed.values()
    assert [reason.code for reason in failed.reasons] == ["engine-crashed"] * FAILURES_MAX
    assert failed.record.request.ask.question
    where = [desk.me for desk in world.desks for _, assign in desk.started if assign.task.index == 1]
    assert len(where) == len(set(where)) == 3, "each time where it had not failed yet"


def test_a_task_that_fails_on_one_node_is_done_by_another() -> None:
    world = World()
    leader = world.ready()
    bad = world.others(leader)[0]
    bad.fails = lambda task: True
    job_id = leader.submit(tasks=6)
    world.until(lambda: world.completed_everywhere(job_id))
    assert all(result.agent.node_id != bad.me for result in leader.job(job_id).results().values())


def test_inputs_that_nobody_holds_now_are_waited_for_and_are_no_failure() -> None:
    world = World()
    leader = world.ready()
    for desk in world.desks:
        desk.fails, desk.failure_code = (lambda task: task.index == 0), INPUTS_MISSING
    job_id = leader.submit(tasks=3)
    world.run(20.0)
    assert not leader.job(job_id).closed
    assert len(leader.job(job_id).results()) == 2, "the others go on"
    assert starts(world)[0] <= 6, "not hammered"
    assert "holds what its tasks read" in leader.told[-1].waiting_for
    for desk in world.desks:
        desk.fails = lambda task: False
    world.until(lambda: world.completed_everywhere(job_id), INPUTS_REST_MAX_S + 5.0)
    assert not leader.job(job_id).failures()


def test_retention_of_an_old_job_leaves_a_result_that_waits_to_be_announced() -> None:
    """The same content may be both: found by simulated seeds 309 and 1305."""
    world = World()
    leader = world.ready()
    leader.submit(tasks=3)
    worker = world.desks[0]
    world.until(lambda: any(one.finished is not None for one in worker.replica.work.intake.running.values()))
    [waiting] = [one.finished for one in worker.replica.work.intake.running.values() if one.finished is not None]
    other = b"o" * 32
    dropped = worker.replica._settle([effects.DropBlobs((other, waiting.result.sha256))], world.now)
    assert [effect.sha256 for effect in dropped if isinstance(effect, effects.DropBlobs)] == [(other,)]


def test_jobs_that_can_not_go_on_take_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.coordinator.JOBS_MAX", 2)
    world = World()
    leader = world.ready()
    leader.no_plan = [False] * 1000
    stuck = [desk.submit(tasks=1) for desk in world.desks]
    world.run(1.0)
    leader.no_plan = []
    for job_id in stuck:
        leader.replica.work.coordinator._retry_at[job_id] = world.now + 60.0
    job_id = leader.submit(tasks=2)
    world.until(lambda: leader.job(job_id).closed, 10.0)
    assert not any(leader.job(one).closed for one in stuck)


def test_where_there_is_one_node_it_may_try_three_times() -> None:
    world = World(nodes=1)
    leader = world.ready()
    leader.fails = lambda task: True
    job_id = leader.submit()
    world.until(lambda: leader.job(job_id).state == FAILED)
    assert starts(world) == {0: FAILURES_MAX}


def test_a_task_that_hangs_every_engine_ends_its_job() -> None:
    world = World()
    leader = world.ready()
    for desk in world.desks:
        desk.hangs = lambda task: True
    job_id = leader.submit()
    took = world.until(lambda: leader.job(job_id).state == FAILED, 200.0)
    assert took < 3 * LEASE_S
    [(_, failed)] = leader.job(job_id).failed.values()
    assert {reason.code for reason in failed.reasons} == {"no-progress"}


def test_a_cancelled_job_stops_everywhere() -> None:
    world = World(task_s=10.0)
    leader = world.ready()
    job_id = leader.submit(tasks=3)
    busy(world, *world.desks)
    other = world.others(leader)[0]
    other.do(events.FactAuthored("job_cancelled", facts_pb2.JobCancelled(job_id=job_id), WALL_MS))
    world.until(lambda: not any(desk.engine.running for desk in world.desks), 2.0)
    assert {desk.job(job_id).state for desk in world.desks} == {CANCELLED}
    world.run(1.0)
    assert not any(desk.replica.work.intake.running for desk in world.desks)
    assert not leader.replica.work.coordinator.dispatch.in_flight
    assert not leader.says("task_finished", job_id)


# Nodes that come and go


def test_a_new_leader_goes_on_without_starting_again_what_still_runs() -> None:
    world = World(task_s=4.0)
    leader = world.ready()
    others = world.others(leader)
    job_id = others[0].submit(tasks=5)
    busy(world, *world.desks)
    running = {assign.task.index for desk in others for _, assign in desk.started}
    lost = {assign.task.index for _, assign in leader.started}
    leader.crash()
    world.until(lambda: world.completed_everywhere(job_id))
    again = Counter(assign.task.index for desk in others for _, assign in desk.started)
    assert {index: again[index] for index in running} == dict.fromkeys(running, 1)
    assert set(again) == running | lost | {3, 4}
    assert not hedges(others[0], job_id)


def test_what_a_lost_worker_did_is_done_elsewhere() -> None:
    world = World()
    leader = world.ready()
    lost = world.others(leader)[0]
    job_id = leader.submit(tasks=6)
    busy(world, lost)
    lost.crash()
    world.until(lambda: world.completed_everywhere(job_id))
    lost.start()
    world.until(lambda: world.completed_everywhere(job_id), 10.0)


def test_all_go_down_and_the_job_goes_on() -> None:
    world = World()
    leader = world.ready()
    job_id = leader.submit(tasks=6, document=b"text")
    world.until(lambda: len(leader.job(job_id).results()) >= 2)
    for desk in world.desks:
        desk.crash()
    for desk in world.desks:
        desk.start()
    world.until(lambda: world.completed_everywhere(job_id))
    done_before = 2
    assert sum(starts(world).values()) <= 6 + 3 + done_before


def test_a_frozen_leader_is_replaced_and_its_late_commands_change_nothing() -> None:
    world = World()
    leader = world.ready()
    others = world.others(leader)
    job_id = others[0].submit(tasks=9)
    busy(world, *world.desks)
    leader.freeze()
    world.until(lambda: world.completed_everywhere(job_id))
    leader.thaw()
    world.until(lambda: world.settled() and world.completed_everywhere(job_id))
    world.run(3.0)
    completions = {frozenset(desk.job(job_id).completed) for desk in world.desks}
    assert len(completions) == 1
    assert not any(desk.engine.running for desk in world.desks)


def test_two_halves_both_finish_and_agree_on_one_answer_when_they_meet() -> None:
    world = World()
    leader = world.ready()
    alone, *others = [leader, *world.others(leader)]
    job_id = leader.submit(tasks=6)
    busy(world, *world.desks)
    for other in others:
        world.set_cut(alone, other, noticed=False)
    world.until(lambda: world.completed_everywhere(job_id))
    world.heal()
    world.until(world.settled)
    world.run(5.0)
    assert len({min(desk.job(job_id).completed) for desk in world.desks}) == 1
    assert len({desk.replica.ledger.fingerprint() for desk in world.desks}) == 1


def test_a_worker_that_was_gone_for_a_moment_does_not_keep_what_it_forgot() -> None:
    world = World(nodes=2, task_s=3.0)
    leader = world.ready()
    [worker] = world.others(leader)
    leader.do(events.Draining())  # so that a second copy has no other place to go to
    job_id = leader.submit(tasks=1)
    busy(world, worker)
    worker.crash()
    worker.start()
    took = world.until(lambda: leader.job(job_id).closed)
    assert took < 3.0 + 2.0, "not a lease later"


def test_a_draining_node_gets_no_new_work() -> None:
    world = World()
    leader = world.ready()
    leaving = world.others(leader)[0]
    job_id = leader.submit(tasks=9)
    busy(world, leaving)
    before = len(leaving.started)
    leaving.do(events.Draining())
    world.until(lambda: world.completed_everywhere(job_id))
    assert len(leaving.started) <= before + 1, "one may have been on its way"


# Late is worse than lost


def test_a_frozen_node_costs_little_and_gets_nothing_while_it_is_frozen() -> None:
    world = World()
    leader = world.ready()
    frozen = world.others(leader)[0]
    job_id = leader.submit(tasks=9)
    busy(world, frozen)
    frozen.freeze()
    froze_at = world.now
    world.until(lambda: leader.job(job_id).closed)
    assert world.now - froze_at < 7 / 2 + 3.0, "seven tasks on two nodes, and little more"
    assert [(node != frozen.me) for _, node, _ in hedges(leader, job_id)] == [True]
    assigned_later = [
        record
        for fact in leader.says("job_assigned", job_id)
        for record in fact.body.job_assigned.assignments
        if record.agent.node_id == frozen.me and (fact.hybrid_clock >> 16) > WALL_MS + (froze_at + 0.2) * 1000
    ]
    assert not assigned_later
    frozen.thaw()
    world.until(lambda: frozen.job(job_id).closed)
    world.run(1.0)
    assert frozen.stopped, "its copy is of no more use"
    assert not frozen.engine.running


@pytest.mark.parametrize(("known", "within_s"), [(True, 0.4), (False, LATE_S + 0.6)])
def test_a_stalled_engine_is_hedged_and_left_alone_until_it_moves(known: bool, within_s: float) -> None:
    world = World(task_s=2.0)
    leader = world.ready()
    stalled = world.others(leader)[0]
    job_id = leader.submit(tasks=3)
    busy(world, *world.desks)
    stalled.freeze_engine(known=known)
    [(_, late)] = stalled.started
    stalled_at = world.now
    others = [desk for desk in world.desks if desk is not stalled]
    world.until(lambda: not any(desk.engine.running for desk in others))
    free_at = world.now
    world.until(lambda: bool(hedges(leader, job_id)))
    assert world.now - max(stalled_at, free_at) < within_s
    world.until(lambda: leader.job(job_id).closed)
    [(index, _, why)] = hedges(leader, job_id)
    assert index == late.task.index
    assert ("engine" in why) if known else ("no progress" in why)
    second = leader.submit(tasks=4)
    world.until(lambda: leader.job(second).closed)
    assert len(stalled.started) == 1
    stalled.engine.frozen = False
    stalled.do(events.EngineChanged(ready=True))
    stalled.do(events.TaskStopped(stalled.stopped[0]))
    world.run(10.0)
    third = leader.submit(tasks=6)
    world.until(lambda: leader.job(third).closed)
    assert len(stalled.started) >= 2, "it works again"


def test_of_two_copies_the_first_result_wins_and_the_other_is_stopped() -> None:
    world = World(task_s=3.0)
    leader = world.ready()
    slow = world.others(leader)[0]
    job_id = leader.submit(tasks=3)
    busy(world, *world.desks)
    slow.engine.frozen = True
    [(_, late)] = slow.started
    world.until(lambda: bool(hedges(leader, job_id)))
    world.until(lambda: bool(hedges(leader, job_id)) and starts(world)[late.task.index] == 2)
    slow.engine.frozen = False  # its copy has had a head start
    world.until(lambda: world.completed_everywhere(job_id))
    world.run(1.0)
    winner = leader.job(job_id).results()[TaskRef(late.task.index, 0)].agent.node_id
    assert winner == slow.me
    [stopped] = list(itertools.chain.from_iterable(desk.stopped for desk in world.desks))
    assert stopped.ref.index == late.task.index
    assert len(leader.says("task_finished", job_id)) == 3


def test_where_a_second_copy_can_not_help_there_is_none() -> None:
    world = World(nodes=1)
    leader = world.ready()
    job_id = leader.submit(tasks=2)
    busy(world, leader)
    leader.engine.frozen = True
    world.run(5.0)
    leader.engine.frozen = False
    world.until(lambda: leader.job(job_id).closed)
    assert starts(world) == {0: 1, 1: 1}
    assert not hedges(leader, job_id)


FAULTS = ["crash", "freeze", "freeze engine", "cut", "nothing"]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 2), st.floats(0.1, 4.0)), max_size=4), st.booleans())
def test_whatever_happens_every_job_ends_the_same_everywhere(faults: list[tuple[str, int, float]], chain: bool) -> None:
    world = World(slots=2, task_s=0.75)
    world.ready()
    jobs = [desk.submit(tasks=4, chain=chain, document=b"text") for desk in world.desks[:2]]
    world.until(lambda: all(desk.answers for desk in world.desks[:2]), 6.0)
    assert all(desk.answers[1].copies == 3 for desk in world.desks[:2])
    for kind, number, lasts_s in faults:
        desk = world.desks[number]
        match kind:
            case "crash":
                desk.crash()
            case "freeze":
                desk.freeze()
            case "freeze engine":
                desk.freeze_engine(known=lasts_s > 2.0)
            case "cut":
                world.set_cut(desk, world.desks[number - 1], noticed=lasts_s > 2.0)
        world.run(lasts_s)
        if not desk.running:
            desk.start()
        if desk.frozen:
            desk.thaw()
        if desk.engine.frozen:
            desk.engine.frozen = False
            desk.do(events.EngineChanged(ready=True))
        world.heal()
        world.run(0.2)
    world.until(lambda: world.settled() and all(world.completed_everywhere(job_id) for job_id in jobs))
    world.run(2.0)
    assert len({desk.replica.ledger.fingerprint() for desk in world.desks}) == 1
    for job_id in jobs:
        for desk in world.desks:
            completion = desk.job(job_id).completion
            assert completion is not None
            assert completion.result.sha256 in desk.blobs
