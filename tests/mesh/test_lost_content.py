"""Content that nobody in sight holds: what is lost for good is done again, what was only missed is not."""

import pytest

from mesh.dispatch import INPUTS_MISSING
from tests.mesh.working import World


@pytest.mark.parametrize("lost", ["a result", "the plan"])
def test_what_is_lost_for_good_is_done_again(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result may be announced with one copy after its deadline, and that disk may die."""
    monkeypatch.setattr("mesh.coordinator.LOST_AFTER_S", 40.0)
    world = World()
    leader = world.ready()
    job_id = leader.submit(tasks=3, chain=True)
    world.until(lambda: len(leader.job(job_id).results()) == 1)
    first = leader.job(job_id).plan
    assert first is not None
    [finished] = leader.job(job_id).results().values()
    gone = finished.result.sha256 if lost == "a result" else first.plan.sha256
    for desk in world.desks:
        desk.blobs.pop(gone, None)
        desk.fails = lambda task: task.index > 0 and lost == "a result" and leader.job(job_id).plan == first
        desk.failure_code = INPUTS_MISSING
    leader.replica.work.coordinator._plans.clear()
    world.run(30.0)
    assert leader.job(job_id).plan == first
    assert not leader.job(job_id).closed
    world.until(lambda: world.completed_everywhere(job_id), 60.0)
    now = leader.job(job_id).plan
    assert now is not None
    assert now.revision == first.revision + 1


def test_a_long_task_that_lacked_its_inputs_once_is_not_planned_again_while_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.coordinator.LOST_AFTER_S", 10.0)
    world = World()
    leader = world.ready()
    for desk in world.desks:
        desk.fails, desk.failure_code = (lambda _: True), INPUTS_MISSING
    job_id = leader.submit()
    world.until(lambda: job_id in leader.replica.work.coordinator._missing)
    for desk in world.desks:
        desk.fails = lambda _: False
    world.task_s = 40.0
    world.until(lambda: world.completed_everywhere(job_id))
    assert len(leader.says("job_planned", job_id)) == 1


def test_tries_that_lack_their_inputs_do_not_hold_off_a_new_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are so many that one is always in flight."""
    monkeypatch.setattr("mesh.coordinator.LOST_AFTER_S", 20.0)
    world = World(slots=2)
    leader = world.ready()
    for desk in world.desks:
        desk.fails, desk.failure_code = (lambda _: True), INPUTS_MISSING
    job_id = leader.submit(tasks=200)
    world.until(lambda: len(leader.says("job_planned", job_id)) == 2, 40.0)
