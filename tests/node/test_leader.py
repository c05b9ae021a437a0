"""Tests of node/leader.py beside those through whole nodes in test_daemon.py: the moments that those can not hit."""

import asyncio
import random
from typing import Any, cast

from google.protobuf.message import Message

from mesh import events
from mesh.dispatch import TaskKey
from mesh.facts import Fact
from mesh.identity import NodeId, NodeKey
from mesh.ledger import TaskRef
from mesh.replica import Replica
from mesh.wire import common_pb2, mesh_pb2, work_pb2
from node.leader import Leader

ME = NodeKey.from_scalar(1)
PEER = NodeKey.from_scalar(2).node_id
JOB = b"j" * 32


class NobodyThere:
    """A mesh of this node alone; it keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[NodeId, mesh_pb2.LinkMessage]] = []

    def live_peers(self) -> list[NodeId]:
        return []

    def send_or_deliver(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        self.sent.append((peer, message))

    async def author(self, kind: str, content: Message) -> Fact:
        raise AssertionError(f"nothing is to be said here: {kind}")


def leader() -> Leader:
    replica = Replica(ME, 1, 1, random.Random(1))
    replica.handle(events.Ticked(), 0.0)
    unused = cast(Any, None)  # no job is open, so no engine, blob, plan or solver is asked for
    return Leader(NobodyThere(), replica, unused, unused, unused, unused)


def token(term: int) -> common_pb2.FencingToken:
    return common_pb2.FencingToken(term=term, leader_id=ME.node_id)


async def test_a_node_that_lost_the_lead_and_won_it_at_once_leads() -> None:
    one = leader()
    one.lead(token(1))
    await asyncio.sleep(0)
    ended = one.concede()
    one.lead(token(3))
    assert ended is not None
    await asyncio.gather(ended, return_exceptions=True)
    assert one.token == token(3)
    running = one.concede()
    assert running is not None
    assert not running.done(), "the loop of the new term goes on when the old one has ended"
    await asyncio.gather(running, return_exceptions=True)


async def test_reports_of_another_term_are_not_adopted() -> None:
    one = leader()
    one.lead(token(2))
    event = work_pb2.TaskEvent(job_id=JOB, task_index=4, attempt=2, agent=common_pb2.AgentRef(node_id=PEER))
    one.work_report(PEER, work_pb2.WorkReport(token=token(1), running=[event]))
    assert not one.dispatch.in_flight
    one.work_report(PEER, work_pb2.WorkReport(token=token(2), running=[event]))
    assert list(one.dispatch.in_flight) == [TaskKey(JOB, TaskRef(4, 0))]
    one.member_gone(PEER)
    assert not one.dispatch.in_flight
    running = one.concede()
    assert running is not None
    await asyncio.gather(running, return_exceptions=True)
