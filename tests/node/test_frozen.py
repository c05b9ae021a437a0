"""Frozen and orphaned processes of real nodes on loopback: found out within seconds, and nothing waits for them."""

import os
import signal
import time

import pytest

from mesh.wire import local_pb2
from scripts.daemons import Daemon, processes_of, until
from tests.conftest import DaemonFactory
from tests.node.test_daemon import DOCUMENT, finished, leader_among, summarize, three

pytestmark = pytest.mark.slow

#: After SIGKILL of a daemon, seconds.
CHILDREN_GONE_WITHIN_S = 2.0


def children(node: Daemon, module: str = "") -> list[int]:
    return [pid for pid, words in processes_of(node.data_dir).items() if pid != node.pid and module in words]


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
async def test_engine_and_solver_go_with_their_daemon(daemon: DaemonFactory, stopped: bool) -> None:
    node = daemon()
    await node.ready()

    async def warm() -> bool:
        return (await node.status()).solver_state == "ready"

    await until(warm, 30.0, "the solver is ready")
    both = children(node)
    assert len(both) == 2
    if stopped:
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(node.pid, signal.SIGKILL)

    async def gone() -> bool:
        return not children(node)

    await until(gone, CHILDREN_GONE_WITHIN_S, "engine and solver are gone")
    assert time.monotonic() - began < CHILDREN_GONE_WITHIN_S + 0.5


async def test_a_frozen_engine_is_told_of_and_its_task_is_done_elsewhere(daemon: DaemonFactory) -> None:
    nodes = await three(daemon, pace=80.0)
    leader = await leader_among(nodes)
    frozen = next(node for node in nodes if node is not leader)
    frozen_id = (await frozen.status()).node_id
    async with leader.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)

        async def at_work() -> bool:
            return (await frozen.status()).load.slots_busy > 0

        await until(at_work, 30.0, "a task runs on the node that will freeze")
        [engine] = children(frozen, "node.engine.child")
        os.kill(engine, signal.SIGSTOP)

        async def told() -> bool:
            return any(info.node_id == frozen_id and info.load.engine_stalled for info in await client.nodes())

        await until(told, 6.0, "the leader knows that the engine stands still")
        began = time.monotonic()
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_COMPLETED, last.reasons
        assert time.monotonic() - began < 15.0, "shorter than any lease: it was hedged"
        rounds = (await client.explain(accepted.job_id)).rounds
        assert any(one.assigned.method == "hedge" for one in rounds)
        os.kill(engine, signal.SIGCONT)

        async def moves() -> bool:
            return not (await frozen.status()).load.engine_stalled

        await until(moves, 6.0, "the engine moves again")
        assert engine in children(frozen), "it was not killed for it"


async def test_a_leader_without_a_working_engine_plans_with_a_peers(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    leader = await leader_among(nodes)
    [engine] = children(leader, "node.engine.child")
    os.kill(engine, signal.SIGSTOP)

    async def told() -> bool:
        return (await leader.status()).load.engine_stalled

    await until(told, 6.0, "the leader knows that its engine stands still")
    began = time.monotonic()
    async with leader.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)
        last = await finished(client, accepted.job_id)
    assert last.state == local_pb2.JOB_STATE_COMPLETED, last.reasons
    leader_id = (await leader.status()).node_id
    assert all(task.agent.node_id != leader_id for task in last.tasks)
    assert time.monotonic() - began < 15.0, "before the stopped engine is given up and started again"
    os.kill(engine, signal.SIGCONT)


async def test_a_frozen_daemon_delays_a_job_by_seconds(daemon: DaemonFactory) -> None:
    nodes = await three(daemon, pace=80.0)
    leader = await leader_among(nodes)
    frozen = next(node for node in nodes if node is not leader)
    async with leader.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)

        async def at_work() -> bool:
            return (await frozen.status()).load.slots_busy > 0

        await until(at_work, 30.0, "a task runs on the node that will freeze")
        frozen.send(signal.SIGSTOP)
        began = time.monotonic()
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_COMPLETED, last.reasons
        assert time.monotonic() - began < 15.0
    frozen.send(signal.SIGCONT)
    async with frozen.client() as other:

        async def knows() -> bool:
            return (await other.result(accepted.job_id)).job.state == local_pb2.JOB_STATE_COMPLETED

        await until(knows, 20.0, "the thawed node has the result")
