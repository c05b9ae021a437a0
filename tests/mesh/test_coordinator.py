"""Jobs from end to end on three replicas in memory: what the leader decides, and what it survives."""

from tests.mesh.working import World


def test_a_job_is_planned_done_by_all_and_completed_with_copies() -> None:
    world = World()
    world.ready()
    job_id = world.desks[0].submit(tasks=6, document=b"text")
    world.until(lambda: world.completed_everywhere(job_id))
    [completed] = world.desks[1].job(job_id).completed.values()
    assert completed[1].record.tasks == 6
    assert {desk.me for desk in world.desks if desk.started} == {desk.me for desk in world.desks}
    assert all(completed[1].result.sha256 in desk.blobs for desk in world.desks)
