"""Tests of node/links.py: two real gRPC servers on loopback, joined by real links."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from mesh.identity import NodeId, NodeKey
from mesh.wire import facts_pb2, membership_pb2, mesh_pb2, mesh_pb2_grpc
from node.links import GRPC_OPTIONS, QUEUE_MAX, Links


class Node:
    """An owner that writes down what it hears."""

    def __init__(self, scalar: int) -> None:
        self.key = NodeKey.from_scalar(scalar)
        self.me = self.key.node_id
        self.port = 0
        self.version = 1
        self.opened: list[NodeId] = []
        self.closed: list[NodeId] = []
        self.received: list[mesh_pb2.LinkMessage] = []
        self.said: list[str] = []
        self.links = Links(self, self.me, twin_grace_s=0.1)
        self.server: grpc.aio.Server | None = None

    def hello(self) -> membership_pb2.Hello:
        hello = membership_pb2.Hello(
            node_id=self.me,
            incarnation=1,
            public_key=self.key.public_key,
            protocol_version=self.version,
            protocol_version_min=self.version,
        )
        hello.addresses.add(host="127.0.0.1", port=self.port)
        return hello

    def link_opened(self, hello: membership_pb2.Hello) -> None:
        self.opened.append(NodeId(hello.node_id))

    def link_closed(self, peer: NodeId) -> None:
        self.closed.append(peer)

    async def message_received(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        self.received.append(message)

    def log(self, level: str, text: str) -> None:
        self.said.append(text)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # any state may be asked for
                await asyncio.sleep(0.01)

    async def dial(self, other: "Node") -> NodeId | None:
        ended: asyncio.Future[NodeId | None] = asyncio.get_running_loop().create_future()
        self.links.dial("127.0.0.1", other.port, None, ended.set_result)
        return await asyncio.wait_for(ended, 10)


class Service(mesh_pb2_grpc.MeshServicer):  # only the link; the rest is not called here
    __abstractmethods__: frozenset[str] = frozenset()

    def __init__(self, node: Node) -> None:
        self.node = node

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self.node.links.accept(request_iterator, context)


@asynccontextmanager
async def nodes(*scalars: int) -> AsyncIterator[list[Node]]:
    """Nodes in order of their ids, each with a server."""
    made = sorted((Node(scalar) for scalar in scalars), key=lambda node: node.me)
    for node in made:
        node.server = grpc.aio.server(options=GRPC_OPTIONS)
        mesh_pb2_grpc.add_MeshServicer_to_server(Service(node), node.server)  # type: ignore[abstract]
        node.port = node.server.add_insecure_port("127.0.0.1:0")
        await node.server.start()
    try:
        yield made
    finally:
        for node in made:
            await node.links.close()
        for node in made:
            assert node.server is not None
            await node.server.stop(None)


def note(text: str) -> mesh_pb2.LinkMessage:
    return mesh_pb2.LinkMessage(leave=membership_pb2.Leave(reason=text))


async def test_a_dialled_link_carries_messages_both_ways_in_order() -> None:
    async with nodes(1, 2) as (a, b):
        assert await a.dial(b) == b.me
        await b.until(lambda: b.opened == [a.me])
        await a.until(lambda: a.opened == [b.me])
        for number in range(50):
            assert a.links.send(b.me, note(str(number)))
            assert b.links.send(a.me, note(str(number)))
        await b.until(lambda: len(b.received) == 50)
        await a.until(lambda: len(a.received) == 50)
        assert [message.leave.reason for message in b.received] == [str(number) for number in range(50)]


async def test_a_peer_that_ends_is_heard_of_once() -> None:
    async with nodes(1, 2) as (a, b):
        await a.dial(b)
        await b.until(lambda: b.opened == [a.me])
        await a.links.close()
        await b.until(lambda: b.closed == [a.me])
        assert b.links.count(a.me) == 0
        assert not b.links.send(a.me, note("lost"))


async def test_two_that_dial_at_once_stay_linked_and_hear_of_it_once() -> None:
    async with nodes(1, 2) as (a, b):
        await asyncio.gather(a.dial(b), b.dial(a))
        await a.until(lambda: a.opened == [b.me])
        await b.until(lambda: b.opened == [a.me])
        assert a.links.send(b.me, note("one way"))
        assert b.links.send(a.me, note("and back"))
        await b.until(lambda: len(b.received) == 1)
        await a.until(lambda: len(a.received) == 1)
        await a.until(lambda: (a.links.count(b.me), b.links.count(a.me)) == (1, 1))
        assert (a.opened, a.closed, b.opened, b.closed) == ([b.me], [], [a.me], [])


async def test_a_second_dial_to_a_linked_peer_is_not_kept() -> None:
    async with nodes(1, 2) as (a, b):
        await a.dial(b)
        await a.until(lambda: a.opened == [b.me])
        assert await a.dial(b) == b.me
        assert a.opened == [b.me]


async def test_a_node_that_dials_itself_learns_that_it_is_itself() -> None:
    async with nodes(1) as (a,):
        assert await a.dial(a) == a.me
        assert a.opened == []


async def test_nobody_there_is_a_failed_dial() -> None:
    async with nodes(1, 2) as (a, b):
        assert b.server is not None
        await b.server.stop(None)
        assert await a.dial(b) is None


@pytest.mark.parametrize("broken", ["id", "version"])
async def test_a_peer_that_is_not_what_it_says_or_speaks_otherwise_is_refused(broken: str) -> None:
    async with nodes(1, 2) as (a, b):
        if broken == "id":
            a.me = NodeId("0" * 32)
        else:
            a.version = 99
        await a.dial(b)
        await a.links.close()
        assert b.opened == []


async def test_what_a_slow_peer_does_not_take_is_dropped_and_not_kept() -> None:
    async with nodes(1, 2) as (a, b):
        blocked = asyncio.Event()

        async def never(peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
            await blocked.wait()

        b.message_received = never  # type: ignore[method-assign]
        await a.dial(b)
        await a.until(lambda: a.opened == [b.me])
        large = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[facts_pb2.SignedFact(body=b"x" * 16_000)] * 4))
        sent = [a.links.send(b.me, large) for _ in range(QUEUE_MAX + 500)]
        assert not all(sent)
        blocked.set()
