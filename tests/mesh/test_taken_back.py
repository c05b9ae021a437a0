"""Results that a denial takes back after they were folded (coordinator.py)."""

import pytest

from mesh import effects, events
from mesh.ledger import TaskRef
from mesh.wire import facts_pb2
from tests.mesh.working import World


@pytest.mark.parametrize("announcing", [False, True])
def test_results_that_a_denial_takes_back_are_done_again(announcing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the answer is put together, or waits for its copies: found by simulated seed 522."""
    world = World()
    leader = world.ready()
    held: list[effects.Assemble] = []
    monkeypatch.setattr(leader, "assemble", held.append)
    job_id = leader.submit(tasks=6)
    world.until(lambda: bool(held))
    thief = next(desk for desk in world.others(leader) if desk.started)
    monkeypatch.undo()
    if announcing:
        for desk in world.others(leader):
            desk.disk_full = True  # no copy comes, so it waits
        leader.assemble(held[0])
    leader.do(events.FactAuthored("deny", facts_pb2.Deny(node_id=thief.me, epoch=1), leader.wall_ms()))
    world.until(lambda: len(leader.job(job_id).results()) < 6)
    for desk in world.desks:
        desk.disk_full = False
    if not announcing:
        leader.assemble(held[0])
    world.until(lambda: bool(leader.job(job_id).completed))
    results = leader.job(job_id).results()
    assert {result.agent.node_id for result in results.values()} == {
        desk.me for desk in world.desks if desk is not thief
    }
    [(_, completed)] = leader.job(job_id).completed.values()
    hashes = [results[TaskRef(index, 0)].result.sha256 for index in range(6)]
    assert list(completed.result_sha256) == hashes
    assert leader.blobs[completed.result.sha256] == b"job" + b"".join(hashes)
