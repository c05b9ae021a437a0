"""Cuts while jobs run: nothing is reset, frames just do not arrive. One way, a host off, two sides, and loss."""

import asyncio

import pytest

from scripts.daemons import Daemon, formed
from scripts.workload import agreed, completed, submit, under_way, up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(150)]


def others_than(*these: Daemon, among: list[Daemon]) -> list[Daemon]:
    return [one for one in among if one not in these]


async def test_a_worker_that_is_not_heard_holds_up_nothing(lan_of: LanFactory) -> None:
    """One way: the worker hears everybody, nobody hears the worker."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    mute, third = others_than(leader, among=everyone)
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=mute.name)
    for hearer in (leader, third):
        lan.cut(mute.name, hearer.name, one_way=True)
    await completed(leader, job)
    lan.heal()
    await formed(everyone)
    await agreed(everyone, [job])


async def test_a_leader_that_is_not_heard_is_replaced(lan_of: LanFactory) -> None:
    """One way: the leader hears everybody, nobody hears the leader."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    others = others_than(leader, among=everyone)
    job = await submit(others[0], pieces=9)
    await under_way(others[0], job)
    for hearer in others:
        lan.cut(leader.name, hearer.name, one_way=True)
    await completed(others[0], job)
    assert await formed(others) in others
    lan.heal()
    await formed(everyone)
    await agreed(everyone, [job])


async def test_a_host_cut_off_finishes_alone_and_agrees_afterwards(lan_of: LanFactory) -> None:
    """The submitter is cut off with what it knows: it leads itself, and both sides complete the job."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    alone, *_ = others_than(leader, among=everyone)
    rest = others_than(alone, among=everyone)
    job = await submit(alone, pieces=6)
    await under_way(alone, job)
    lan.isolate(alone.name)
    await asyncio.gather(completed(alone, job), completed(leader, job))
    assert await formed([alone]) is alone
    assert await formed(rest) in rest
    lan.heal()
    await formed(everyone)
    await agreed(everyone, [job])


async def test_two_sides_work_on_and_merge_to_one(lan_of: LanFactory) -> None:
    """Four hosts split two and two: each side has a leader and takes a job; after the cut all is known everywhere."""
    lan = lan_of(4)
    everyone = list(lan.daemons.values())
    await up(everyone)
    left, right = everyone[:2], everyone[2:]
    shared = await submit(left[0], pieces=9)
    await under_way(left[0], shared)
    lan.isolate(*(one.name for one in left))
    for side in (left, right):
        assert await formed(side) in side
    mine, theirs = await asyncio.gather(submit(left[0], 4, "river"), submit(right[0], 4, "mountain"))
    await asyncio.gather(
        *(completed(left[0], job) for job in (shared, mine)), *(completed(right[0], job) for job in (shared, theirs))
    )
    lan.heal()
    await formed(everyone)
    found = await agreed(everyone, [shared, mine, theirs])
    assert len(found.results) == 3


async def test_a_job_gets_through_a_network_that_loses_a_tenth(lan_of: LanFactory) -> None:
    lan = lan_of(4)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    lan.lose(10)
    jobs = await asyncio.gather(
        *(submit(one, 4, name) for one, name in zip(everyone, ("a", "b", "c", "d"), strict=True))
    )
    await asyncio.gather(*(completed(leader, job) for job in jobs))
    lan.heal()
    await formed(everyone)
    await agreed(everyone, jobs)
