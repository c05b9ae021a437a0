"""Tests of node/links.py: two real gRPC servers on loopback, joined by real links."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from mesh.identity import NodeId, NodeKey
from mesh.wire import facts_pb2, membership_pb2, mesh_pb2, mesh_pb2_grpc
from node.links import GRPC_OPTIONS, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, QUEUE_MAX, Link, Links, host_of


class Node:
    """An owner that writes down what it hears."""

    def __init__(self, scalar: int) -> None:
        self.key = NodeKey.from_scalar(scalar)
        self.me = self.key.node_id
        self.port = 0
        self.version = PROTOCOL_VERSION
        self.version_min = PROTOCOL_VERSION_MIN
        self.opened: list[NodeId] = []
        self.dialled_from: list[str] = []
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
            protocol_version_min=self.version_min,
        )
        hello.addresses.add(host="127.0.0.1", port=self.port)
        return hello

    def link_opened(self, hello: membership_pb2.Hello, dialled_from: str) -> None:
        self.opened.append(NodeId(hello.node_id))
        self.dialled_from.append(dialled_from)

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

    async def dial(self, other: "Node", expected: NodeId | None = None) -> NodeId | None:
        return (await self.dial_port(other.port, expected))[0]

    async def dial_port(self, port: int, expected: NodeId | None = None) -> tuple[NodeId | None, bool]:
        """Who answered, and whether nobody listens there."""
        ended: asyncio.Future[tuple[NodeId | None, bool]] = asyncio.get_running_loop().create_future()
        self.links.dial("127.0.0.1", port, expected, lambda node, refused: ended.set_result((node, refused)))
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


class Way:
    """A TCP way to a node that can stop carrying anything, without an end of the connection."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.carries = asyncio.Event()
        self.carries.set()
        self.tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        self.carries.clear()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink in ((reader, back), (there, writer)):
            self.tasks.add(asyncio.create_task(self.carry(source, sink)))

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.carries.wait()
                sink.write(data)
        except ConnectionError:
            pass
        finally:
            sink.close()


@asynccontextmanager
async def stoppable_way_to(node: Node) -> AsyncIterator[Way]:
    way = Way(node.port)
    server = await asyncio.start_server(way.connected, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        for task in way.tasks:
            task.cancel()
        await asyncio.gather(*way.tasks, return_exceptions=True)
        await server.wait_closed()


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


async def test_nobody_there_is_a_failed_dial_and_told_from_somebody_else_there() -> None:
    async with nodes(1, 2) as (a, b):
        assert b.server is not None
        await b.server.stop(None)
        assert await a.dial_port(b.port) == (None, True)

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as stranger:
            assert await a.dial_port(stranger.sockets[0].getsockname()[1]) == (None, False)


@pytest.mark.parametrize("lower_dials", [True, False])
async def test_a_dial_of_a_linked_node_by_name_replaces_a_stuck_link(lower_dials: bool) -> None:
    async with nodes(1, 2) as made, stoppable_way_to(made[1] if lower_dials else made[0]) as way:
        a, b = made if lower_dials else made[::-1]
        assert (await a.dial_port(way.port))[0] == b.me
        await b.until(lambda: b.links.count(a.me) == 1)
        way.stop()
        assert a.links.send(b.me, note("into nothing"))
        assert await a.dial(b, b.me) == b.me
        await a.until(lambda: a.links.count(b.me) == 1)
        assert a.links.send(b.me, note("on the new one"))
        await b.until(lambda: len(b.received) == 1)
        assert b.links.send(a.me, note("and back"))
        await a.until(lambda: len(a.received) == 1)
        # The other side can not know that the old one is stuck; it speaks on the newest all the same.
        assert (b.received[0].leave.reason, a.received[0].leave.reason) == ("on the new one", "and back")
        assert (a.opened, a.closed, b.opened, b.closed) == ([b.me], [], [a.me], [])


async def test_two_that_replace_their_link_at_once_stay_linked() -> None:
    async with nodes(1, 2) as (a, b):
        await a.dial(b)
        await b.until(lambda: b.links.count(a.me) == 1)
        for _ in range(5):
            await asyncio.gather(a.dial(b, b.me), b.dial(a, a.me))
        await a.until(lambda: (a.links.count(b.me), b.links.count(a.me)) == (1, 1))
        assert (a.closed, b.closed) == ([], [])
        assert a.links.send(b.me, note("still here"))
        await b.until(lambda: len(b.received) == 1)


async def test_the_owner_hears_where_a_peer_dialled_from() -> None:
    async with nodes(1, 2) as (a, b):
        await a.dial(b)
        await b.until(lambda: b.opened == [a.me])
        assert (a.dialled_from, b.dialled_from) == ([""], ["127.0.0.1"])


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4000", "10.0.0.1"),
        ("ipv6:%5Bfd77::1%5D:4000", "fd77::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4000", "fe80::1%eth0"),
        ("unix:", ""),
    ],
)
def test_the_host_in_a_peers_name(peer: str, host: str) -> None:
    assert host_of(peer) == host


async def test_nodes_of_this_release_and_of_the_previous_one_link() -> None:
    async with nodes(1, 2) as (a, b):
        b.version = b.version_min = PROTOCOL_VERSION_MIN
        assert await a.dial(b) == b.me
        await a.until(lambda: a.opened == [b.me])


@pytest.mark.parametrize("broken", ["id", "version"])
async def test_a_peer_that_is_not_what_it_says_or_speaks_otherwise_is_refused(broken: str) -> None:
    async with nodes(1, 2) as (a, b):
        if broken == "id":
            a.me = NodeId("0" * 32)
        else:
            a.version = a.version_min = 99
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


async def test_a_link_that_is_cancelled_while_it_ends_is_gone_all_the_same() -> None:
    """gRPC cancels the call of a peer that was killed; the end of its stream may have been read just before."""
    async with nodes(1, 2) as (a, b):
        ended = asyncio.Event()

        async def read() -> mesh_pb2.LinkMessage | None:
            await ended.wait()
            return None

        slow = asyncio.Event()

        async def slow_write(_: mesh_pb2.LinkMessage) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await slow.wait()  # what is being written takes its time to be cancelled

        call = asyncio.create_task(a.links._run(Link(b.me, b.hello(), False, "127.0.0.1"), read, slow_write))
        await a.until(lambda: a.opened == [b.me])
        a.links.send(b.me, note("stuck"))
        await asyncio.sleep(0)
        ended.set()
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        slow.set()
        await asyncio.gather(call, return_exceptions=True)
        assert (a.links.count(b.me), a.closed) == (0, [b.me])
