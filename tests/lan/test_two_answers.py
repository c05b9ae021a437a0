"""Both sides of a cut end one job, each with an answer of its own: after it all show one, and the other stays readable.

The job is a panel: its answer names the agents that were asked, and each side can only ask its own.
"""

import asyncio
import json
import secrets
from typing import Any

import pytest

from mesh.wire import local_pb2, work_pb2
from scripts.daemons import Daemon, formed
from scripts.workload import Job, agreed, completed, up
from tests.lan.commands import kith, said
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(180)]

QUESTION = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Which way is north?", panel=2), seed=7)


async def ask(daemon: Daemon, key: bytes) -> Job:
    async with daemon.client() as client:
        return bytes((await client.submit(QUESTION, client_key=key, replica_deadline_s=3.0)).job_id)


async def answer(daemon: Daemon, job: Job) -> local_pb2.ResultReply:
    async with daemon.client() as client:
        return await client.result(job, alternatives=True)


def asked(result: work_pb2.JobResult) -> set[str]:
    """Names of the nodes whose agents were asked."""
    return {ballot.node_name for ballot in result.panel.ballots}


def shown(result: dict[str, Any]) -> str:
    return json.dumps(result, sort_keys=True)


async def two_ends(everyone: list[Daemon], job: Job, sides: tuple[list[Daemon], list[Daemon]]) -> None:
    """Everybody shows the same one answer, names it superseding, and gives the other one when asked."""
    found = await agreed(everyone, [job])
    assert len(found.results) == 1
    names = [{one.name for one in side} for side in sides]
    replies = [await answer(one, job) for one in everyone]
    for reply in replies:
        assert reply.job.state == local_pb2.JOB_STATE_COMPLETED
        assert reply.job.superseded
        [other] = reply.alternatives
        assert asked(reply.result) in names
        assert asked(other.result) in names
        assert asked(reply.result) != asked(other.result)
        assert (reply.result, other.result) == (replies[0].result, replies[0].alternatives[0].result)
    short = job.hex()[:12]
    for one in everyone:
        watched = kith(one, "watch", short)
        assert "finished this job twice" in watched
        assert f"kith result {short} --alternatives" in watched
        printed = kith(one, "result", short, "--alternatives")
        assert "alternative 1, completed by " in printed
        listed = said(one, "result", short, "--alternatives")
        assert listed["job"]["superseded"]
        assert len(listed["alternatives"]) == 1
        assert shown(listed) == shown(said(everyone[0], "result", short, "--alternatives"))


async def test_a_job_asked_for_on_both_sides_of_a_cut_has_one_answer_and_an_alternative(lan_of: LanFactory) -> None:
    """A client that repeats its submission on the other side: the same key, so the same job."""
    lan = lan_of(4)
    everyone = list(lan.daemons.values())
    await up(everyone)
    sides = everyone[:2], everyone[2:]
    lan.isolate(*(one.name for one in sides[0]))
    await asyncio.gather(*(formed(side) for side in sides))
    key = secrets.token_bytes(16)
    [job, same] = await asyncio.gather(*(ask(side[0], key) for side in sides))
    assert job == same
    await asyncio.gather(*(completed(side[0], job) for side in sides))
    for side in sides:
        reply = await answer(side[1], job)
        assert asked(reply.result) == {one.name for one in side}
        assert not reply.job.superseded
        assert not reply.alternatives
    lan.heal()
    await formed(everyone)
    await two_ends(everyone, job, sides)


async def test_a_job_cut_in_two_has_one_answer_also_after_a_restart(lan_of: LanFactory) -> None:
    """Accepted by all, then cut before any of it was done: every machine starts again later, and shows the same."""
    lan = lan_of(4, pace=10.0)
    everyone = list(lan.daemons.values())
    await up(everyone)
    sides = everyone[:2], everyone[2:]
    job = await ask(everyone[0], secrets.token_bytes(16))
    lan.isolate(*(one.name for one in sides[0]))
    await asyncio.gather(*(completed(side[0], job) for side in sides))
    lan.heal()
    await formed(everyone)
    await agreed(everyone, [job])
    for one in everyone:
        one.kill()
    lan.start()
    await up(everyone)
    await two_ends(everyone, job, sides)
