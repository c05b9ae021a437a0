"""Hosts that stop where they are: their kernels still answer, nobody resets a connection, and then they wake.

A frozen node is worse than a dead one: nothing tells that it is not just slow.
"""

import hashlib
import signal
import time

import pytest

from mesh.identity import NodeId
from mesh.rendezvous import holders
from mesh.wire import membership_pb2
from scripts import faulty_node
from scripts.daemons import Daemon, formed, until
from scripts.workload import agreed, completed, document, submit, summary, under_way, up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(120)]

#: A submission answers by its own deadline (5 s) and a second for the rest, whatever a peer does.
SUBMIT_WITHIN_S = 8.0
BLOCK_S = 8.0
#: A job of 5 s when nobody freezes, with one who does.
HELD_UP_WITHIN_S = 20.0


async def state_of(observer: Daemon, node_id: str) -> int:
    return next((node.state for node in await observer.nodes() if node.node_id == node_id), 0)


async def test_a_job_outlives_a_frozen_worker_which_wakes(lan_of: LanFactory) -> None:
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    victim.send(signal.SIGSTOP)  # the daemon alone: its engine goes on and is not heard
    await completed(leader, job)
    token = (await leader.status()).leader
    victim.send(signal.SIGCONT)
    assert await formed(everyone) is leader, "who wakes deposes nobody"
    assert (await leader.status()).leader == token
    await agreed(everyone, [job])


async def test_a_frozen_holder_of_the_document_holds_up_nobody(lan_of: LanFactory) -> None:
    """Four nodes, three copies: the fourth asks for the document, first of all the one who froze."""
    lan = lan_of(4)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    ids = {NodeId((await one.status()).node_id): one for one in everyone}
    submitter = next(one for one in everyone if one is not leader)
    # A document whose last holder by rank does not get it, and whose first is free to freeze.
    for number in range(1000):
        text = document(12, f"canal{number}-").encode()
        ranked = [ids[one] for one in holders(hashlib.sha256(text).digest(), sorted(ids), len(ids))]
        if ranked[0] not in (leader, submitter) and ranked[-1] is not submitter:
            break
    async with submitter.client() as client:
        job = bytes((await client.submit(summary(), text)).job_id)
    await under_way(submitter, job, on=ranked[-1].name)
    ranked[0].send(signal.SIGSTOP)
    await completed(submitter, job, HELD_UP_WITHIN_S)
    ranked[0].send(signal.SIGCONT)
    await up(everyone)
    await agreed(everyone, [job])


async def test_a_job_outlives_its_frozen_leader_which_wakes_as_a_follower(lan_of: LanFactory) -> None:
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    others = [one for one in everyone if one is not leader]
    job = await submit(others[0], pieces=9)
    await under_way(others[0], job)
    lan.freeze(leader.name)
    await completed(others[0], job)
    token = (await others[0].status()).leader
    assert token.leader_id in {(await one.status()).node_id for one in others}
    lan.thaw(leader.name)
    await up(everyone)
    assert (await others[0].status()).leader == token, "who wakes deposes nobody"
    await agreed(everyone, [job])


async def test_a_blocked_event_loop_is_seen_though_its_process_lives(lan_of: LanFactory) -> None:
    lan = lan_of(3, entry=faulty_node.ENTRY, environments={f"h{i}": {"KITH_BLOCK_S": f"{BLOCK_S}"} for i in (1, 2, 3)})
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    victim_id = (await victim.status()).node_id
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    began = time.monotonic()
    victim.send(signal.SIGUSR1)

    async def noticed() -> bool:
        return await state_of(leader, victim_id) != membership_pb2.MEMBER_STATE_ALIVE

    await until(noticed, BLOCK_S, "the blocked node is not taken for alive")
    assert time.monotonic() - began < BLOCK_S, "it was noticed while it was blocked"
    await completed(leader, job)
    await up(everyone)
    await agreed(everyone, [job])


@pytest.mark.parametrize(("hosts", "replicas"), [(2, 1), (4, 3)])
async def test_a_submission_does_not_wait_for_a_frozen_peer(lan_of: LanFactory, hosts: int, replicas: int) -> None:
    """Two nodes, one frozen: the job is on one. Four, one frozen: the others are enough."""
    lan = lan_of(hosts, pace=200.0)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    lan.freeze(victim.name)
    began = time.monotonic()
    async with leader.client() as client:
        accepted = await client.submit(summary(), document(2).encode())
    took = time.monotonic() - began
    assert took < SUBMIT_WITHIN_S
    assert accepted.replicas == replicas, f"{accepted.replicas} of {accepted.replicas_wanted} after {took:.1f} s"
    lan.thaw(victim.name)
    await completed(leader, accepted.job_id)
    await up(everyone)
    await agreed(everyone, [accepted.job_id])
