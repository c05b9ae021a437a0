"""An answer is shown once enough nodes hold it, and then for good."""

from mesh import events
from mesh.disclosure import Disclosure
from mesh.ledger import CANCELLED, COMPLETED, OPEN
from mesh.wire import facts_pb2
from tests.mesh.working import SYNC_S, Desk, World


def state_at(desk: Desk, disclosure: Disclosure, job_id: bytes) -> int:
    return disclosure.state_of(desk.job(job_id))


def test_an_answer_is_hidden_until_three_nodes_hold_it_and_seen_by_all_soon_after() -> None:
    world = World(4)
    leader = world.ready()
    job_id = leader.submit(tasks=2)
    shown = {desk.me: Disclosure(desk.replica) for desk in world.desks}
    world.until(lambda: bool(leader.job(job_id).completed))
    # Just synced at its author, and not one receipt is here.
    assert leader.job(job_id).state == COMPLETED
    assert state_at(leader, shown[leader.me], job_id) == OPEN

    def seen(desk: Desk) -> bool:
        return state_at(desk, shown[desk.me], job_id) == COMPLETED

    world.until(lambda: seen(leader))
    holders = [desk for desk in world.desks if desk.says("job_completed", job_id)]
    assert len(holders) >= 3
    assert world.until(lambda: all(map(seen, world.desks)), 5.0) <= 5.0


def test_an_answer_that_was_shown_is_not_hidden_when_its_holders_go() -> None:
    world = World(4)
    leader = world.ready()
    job_id = leader.submit()
    disclosure = Disclosure(leader.replica)
    world.until(lambda: state_at(leader, disclosure, job_id) == COMPLETED)
    for desk in world.others(leader):
        desk.crash()
    fresh = world.others(leader)[0]
    fresh.facts.clear()
    fresh.blobs.clear()
    fresh.start()  # back with an empty disk: the facts have not reached it yet
    world.until(lambda: fresh.me in leader.replica.membership.view(), 60.0)
    assert state_at(leader, disclosure, job_id) == COMPLETED


def test_a_frozen_peer_delays_an_answer_only_until_it_is_found_out() -> None:
    world = World(3)
    leader = world.ready()
    job_id = leader.submit()
    disclosure = Disclosure(leader.replica)
    world.until(lambda: bool(leader.job(job_id).completed))
    frozen = world.others(leader)[0]
    frozen.freeze()
    frozen.waiting.clear()  # what was on its way to it is lost
    world.until(lambda: state_at(leader, disclosure, job_id) == COMPLETED, 30.0)
    assert not frozen.says("job_completed", job_id)
    assert frozen.me not in leader.replica.membership.view()


def test_one_node_alone_shows_its_answer_at_once() -> None:
    world = World(1)
    [desk] = world.desks
    world.ready()
    job_id = desk.submit()
    world.until(lambda: bool(desk.job(job_id).completed))
    assert state_at(desk, Disclosure(desk.replica), job_id) == COMPLETED


def test_a_cancelled_job_is_shown_as_it_is() -> None:
    world = World(3)
    leader = world.ready()
    job_id = leader.submit(tasks=5)
    leader.do(events.FactAuthored("job_cancelled", facts_pb2.JobCancelled(job_id=job_id), leader.wall_ms()))
    world.run(SYNC_S * 2)
    assert state_at(leader, Disclosure(leader.replica), job_id) == CANCELLED
