"""Tasks that kill the engine under them, and what runs beside them: they end with reasons, the others with results."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.ledger import COMPLETED, FAILED
from mesh.standing import ENGINE_GONE, ENGINE_GONE_SHARED, FAILURES_MAX, SHARED_DEATHS
from mesh.wire import facts_pb2
from tests.mesh.working import Desk, World

POISON = " poison"
#: Engines that one poison task kills at most: those that it shares, then each that it has to itself.
DEATHS_MAX = SHARED_DEATHS + FAILURES_MAX


def poisoned(nodes: int, slots: int, task_s: float = 1.0) -> tuple[World, Desk]:
    """A mesh where what is handed in with that word kills its engine, and its leader."""
    world = World(nodes=nodes, slots=slots, task_s=task_s)
    for desk in world.desks:
        desk.kills = lambda task: task.answer.question.endswith(POISON)
    return world, world.ready()


def killed(world: World, job_id: bytes) -> int:
    """How many engines died with a task of this job in them."""
    return sum(any(key.job_id == job_id for key in death) for desk in world.desks for death in desk.deaths)


def failed(desk: Desk, job_id: bytes) -> facts_pb2.JobFailed:
    [(_, content)] = desk.job(job_id).failed.values()
    return content


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("slots", [2, 4])
def test_who_shared_the_engine_with_a_poison_task_is_done_all_the_same(nodes: int, slots: int) -> None:
    world, leader = poisoned(nodes, slots)
    poison = leader.submit(words=POISON)
    plain = [leader.submit(words=f" {number}") for number in range(nodes * slots - 1)]
    world.until(lambda: all(leader.job(one).closed for one in (poison, *plain)))
    assert [leader.job(one).state for one in (poison, *plain)] == [FAILED, *[COMPLETED] * len(plain)]
    codes = [reason.code for reason in failed(leader, poison).reasons]
    assert codes == [ENGINE_GONE] * FAILURES_MAX, "it was alone each time that counts"
    assert 1 <= max(killed(world, one) for one in plain) <= SHARED_DEATHS, "one of them shared the engine with it"
    assert FAILURES_MAX < killed(world, poison) <= DEATHS_MAX


def test_one_kill_from_outside_keeps_nobody_waiting() -> None:
    """As where memory ran out: no task is to blame, so none gets an engine to itself."""
    world = World(nodes=3, slots=16, task_s=4.0)
    leader = world.ready()
    jobs = [leader.submit(words=f" {number}") for number in range(48)]
    world.run(2.0)
    world.desks[-1].kill_engine()
    assert len(world.desks[-1].deaths[0]) == 16
    jobs += [leader.submit(words=f" later {number}") for number in range(48)]
    world.until(lambda: all(leader.job(one).closed for one in jobs), 15.0)


def test_a_job_of_nothing_but_poison_takes_no_other_with_it() -> None:
    world, leader = poisoned(nodes=3, slots=2)
    poison = leader.submit(tasks=12, words=POISON)
    plain = [leader.submit(tasks=3, words=f" {number}") for number in range(4)]
    world.until(lambda: all(leader.job(one).closed for one in (poison, *plain)), 300.0)
    assert [leader.job(one).state for one in (poison, *plain)] == [FAILED, *[COMPLETED] * len(plain)]


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_task_that_must_be_alone_is_not_kept_waiting_by_work_that_never_ends(nodes: int) -> None:
    world, leader = poisoned(nodes, slots=2)
    poison = leader.submit(words=POISON)
    plain = [leader.submit(tasks=100, words=f" {number}") for number in range(3)]
    world.until(lambda: leader.job(poison).state == FAILED, 30.0)
    assert not any(leader.job(one).closed for one in plain), "there is work for a long time"


def test_an_engine_that_is_shared_with_a_stranger_each_time_does_not_fail_a_task_for_ever() -> None:
    """Chat is no task: no leader keeps it out of an engine."""
    world, leader = poisoned(nodes=3, slots=1)
    for desk in world.desks:
        desk.chats = True
    poison = leader.submit(words=POISON)
    world.until(lambda: leader.job(poison).closed)
    assert leader.job(poison).state == FAILED
    assert {reason.code for reason in failed(leader, poison).reasons} == {ENGINE_GONE_SHARED}


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.booleans(), st.floats(0.0, 2.0)), min_size=1, max_size=6),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_poison_jobs_fail_and_all_others_end_well(
    nodes: int, slots: int, jobs: list[tuple[bool, int, bool, float]], task_s: float
) -> None:
    world, leader = poisoned(nodes, slots, task_s)
    ids = []
    for number, (poison, tasks, chain, after_s) in enumerate(jobs):
        words = f" {number}{POISON if poison else ''}"
        ids.append(leader.submit(tasks, chain=chain, words=words))
        world.run(after_s)
    world.until(lambda: all(leader.job(one).closed for one in ids), 600.0)
    assert [leader.job(one).state for one in ids] == [FAILED if poison else COMPLETED for poison, *_ in jobs]
    died = Counter(key for desk in world.desks for death in desk.deaths for key in death)
    kills = {one: poison for one, (poison, *_) in zip(ids, jobs, strict=True)}
    assert all(times <= (DEATHS_MAX if kills[key.job_id] else SHARED_DEATHS) for key, times in died.items())
