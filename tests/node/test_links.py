"""Tests of node/links.py: two real gRPC servers on loopback, joined by real links."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from mesh.certificates import Role
from mesh.identity import NodeId
from mesh.wire import facts_pb2, membership_pb2, mesh_pb2
from node.errors import KithError
from node.handshake import identify
from node.links import Link, host_of
from node.rpc import calling
from scripts.throwaway import ThrowawayMesh
from tests.node.linking import Made, Node


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Made]:
    made = Made(tmp_path)
    yield made
    await made.close()


#: Less than gRPC itself takes to notice a connection that carries nothing (grpc_options.py), seconds.
CALL_WITHIN_S = 8.0
TWO = (Role.NODE, Role.NODE)
#: Messages that may be on an old link when its successor takes over: sending is best effort.
LOST_AT_RENEWAL_MAX = 20


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

    def stall(self) -> None:
        """What is connected now carries nothing any more; new connections do, as after a change of addresses."""
        self.carries.clear()
        self.carries = asyncio.Event()
        self.carries.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink in ((reader, back), (there, writer)):
            self.tasks.add(asyncio.create_task(self.carry(source, sink)))

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        carries = self.carries
        try:
            while data := await source.read(65536):
                await carries.wait()
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


async def test_a_dialled_link_carries_messages_both_ways_in_order(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    assert await a.dial(b) == b.me
    await b.until(lambda: b.opened == [a.me])
    await a.until(lambda: a.opened == [b.me])
    for number in range(50):
        assert a.links.send(b.me, note(str(number)))
        assert b.links.send(a.me, note(str(number)))
    await b.until(lambda: len(b.received) == 50)
    await a.until(lambda: len(a.received) == 50)
    assert [message.leave.reason for message in b.received] == [str(number) for number in range(50)]


async def test_a_peer_that_ends_is_heard_of_once(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    await a.links.close()
    await b.until(lambda: b.closed == [a.me])
    assert b.links.count(a.me) == 0
    assert not b.links.send(a.me, note("lost"))


async def test_two_that_dial_at_once_stay_linked_and_hear_of_it_once(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await asyncio.gather(a.dial(b), b.dial(a))
    await a.until(lambda: a.opened == [b.me])
    await b.until(lambda: b.opened == [a.me])
    assert a.links.send(b.me, note("one way"))
    assert b.links.send(a.me, note("and back"))
    await b.until(lambda: len(b.received) == 1)
    await a.until(lambda: len(a.received) == 1)
    await a.until(lambda: (a.links.count(b.me), b.links.count(a.me)) == (1, 1))
    assert (a.opened, a.closed, b.opened, b.closed) == ([b.me], [], [a.me], [])


async def test_a_second_dial_to_a_linked_peer_is_not_kept(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await a.dial(b)
    await a.until(lambda: a.opened == [b.me])
    assert await a.dial(b) == b.me
    assert a.opened == [b.me]


async def test_a_node_that_dials_itself_learns_that_it_is_itself(nodes: Made) -> None:
    [a] = await nodes(Role.NODE)
    assert await a.dial(a) == a.me
    assert a.opened == []


async def test_nobody_there_is_a_failed_dial_and_told_from_somebody_else_there(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    assert b.server is not None
    await b.server.stop(None)
    assert await a.dial_port(b.port) == (None, True)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as stranger:
        assert await a.dial_port(stranger.sockets[0].getsockname()[1]) == (None, False)


@pytest.mark.parametrize("lower_dials", [True, False])
async def test_a_dial_of_a_linked_node_by_name_replaces_a_stuck_link(nodes: Made, lower_dials: bool) -> None:
    made = await nodes(*TWO)
    async with stoppable_way_to(made[1] if lower_dials else made[0]) as way:
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


async def test_calls_beside_a_new_link_do_not_take_the_connection_from_before_it(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    async with stoppable_way_to(b) as way:
        assert (await a.dial_port(way.port))[0] == b.me
        stub = a.links.stub(b.me)
        assert stub is not None
        await stub.Score(mesh_pb2.ScoreCall(), timeout=CALL_WITHIN_S)
        way.stall()
        [link] = a.links._links[b.me]
        link.cut.set()  # it was noticed on the link, and not on the connection of the calls
        await a.until(lambda: a.closed == [b.me])
        assert (await a.dial_port(way.port, b.me))[0] == b.me
        stub = a.links.stub(b.me)
        assert stub is not None
        await stub.Score(mesh_pb2.ScoreCall(), timeout=CALL_WITHIN_S)


@asynccontextmanager
async def fetching_without_a_link(nodes: Made) -> AsyncIterator[tuple[Node, Node, Any]]:
    """Two nodes whose last link is lost while the first one fetches something from the second."""
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    stub = a.links.stub(b.me)
    assert stub is not None
    call = stub.FetchBlob(mesh_pb2.FetchBlobRequest(), timeout=60.0)
    assert await call.read() == mesh_pb2.BlobChunk(data=b"beginning")
    [link] = a.links._links[b.me]
    link.cut.set()
    await a.until(lambda: a.closed == [b.me])
    yield a, b, call
    call.cancel()


async def test_a_call_that_runs_outlives_the_last_link(nodes: Made) -> None:
    async with fetching_without_a_link(nodes) as (_, b, call):
        b.goes_on.set()
        assert await call.read() == mesh_pb2.BlobChunk(data=b"end")
        assert await call.read() is grpc.aio.EOF


async def test_no_call_to_a_denied_peer_runs_on_though_its_link_was_lost_before(nodes: Made) -> None:
    async with fetching_without_a_link(nodes) as (a, b, call):
        a.links.cut(b.me)
        with pytest.raises(KithError, match="can not be reached"), calling():
            async with asyncio.timeout(CALL_WITHIN_S):
                await call.read()


async def test_two_that_replace_their_link_at_once_stay_linked(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.links.count(a.me) == 1)
    for _ in range(5):
        await asyncio.gather(a.dial(b, b.me), b.dial(a, a.me))
    await a.until(lambda: (a.links.count(b.me), b.links.count(a.me)) == (1, 1))
    assert (a.closed, b.closed) == ([], [])
    assert a.links.send(b.me, note("still here"))
    await b.until(lambda: len(b.received) == 1)


async def test_the_owner_hears_where_a_peer_dialled_from(nodes: Made) -> None:
    a, b = await nodes(*TWO)
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


@pytest.mark.parametrize("broken", ["id", "version", "certificate"])
@pytest.mark.parametrize("dialler_is_wrong", [True, False])
async def test_a_peer_that_is_not_what_it_says_or_speaks_otherwise_is_refused(
    nodes: Made, broken: str, dialler_is_wrong: bool
) -> None:
    a, b = await nodes(*TWO)
    wrong, right = (a, b) if dialler_is_wrong else (b, a)
    other = nodes.mesh.enrol(nodes.folder / "other")
    if broken == "id":
        wrong.key = other.key
        wrong.me = other.key.node_id
    elif broken == "version":
        wrong.version = 99
    else:
        wrong.enrolment = other
    assert await a.dial(b) is None or (broken, dialler_is_wrong) == ("certificate", True)
    await a.links.close()
    # Who dials shows its certificate to TLS; what its Hello holds beside is not looked at.
    assert (right.opened == []) == ((broken, dialler_is_wrong) != ("certificate", True))


async def test_a_node_of_another_mesh_is_not_linked_with_and_it_is_said_once(nodes: Made) -> None:
    [a] = await nodes(Role.NODE)
    [b] = await nodes(Role.NODE, mesh=ThrowawayMesh())
    for _ in range(2):
        assert await a.dial_port(b.port) == (None, False)
        assert await a.dial_port(b.port, b.me) == (None, False)
    assert (a.opened, b.opened) == ([], [])
    assert len([text for text in a.said if "does not belong to this mesh" in text]) == 1


async def test_where_another_node_answers_than_was_expected_that_one_is_linked_with(nodes: Made) -> None:
    a, b, c = await nodes(*TWO, Role.NODE)
    assert await a.dial_port(b.port, c.me) == (b.me, False)
    await a.until(lambda: a.opened == [b.me])


async def test_a_client_has_no_link_and_a_worker_leads_nobody(nodes: Made) -> None:
    [node] = await nodes(Role.NODE)
    [client] = await nodes(Role.CLIENT)
    [worker] = await nodes(Role.WORKER)
    await client.dial(node)
    await worker.dial(node)
    await node.until(lambda: node.opened == [worker.me])
    await worker.until(lambda: worker.opened == [node.me])
    for said in ("leader_beat", "vote_request", "assign"):
        message = mesh_pb2.LinkMessage()
        getattr(message, said).SetInParent()
        for _ in range(2):
            assert worker.links.send(node.me, message)
    assert worker.links.send(node.me, note("is heard"))
    await node.until(lambda: bool(node.received))
    assert [message.WhichOneof("message") for message in node.received] == ["leave"]
    assert len([text for text in node.said if "is a worker" in text]) == 3
    assert any("is a client" in text for text in node.said)


async def test_a_denied_peer_is_cut_off_and_neither_dialled_nor_let_in_again(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    b.denied.add(a.me)
    b.links.cut(a.me)
    b.callers.cut(a.me)
    assert b.closed == [a.me]
    await a.until(lambda: a.closed == [b.me])
    assert await a.dial(b) is None
    assert await b.dial(a, a.me) is None
    assert await b.dial(a) is None
    assert (a.opened, b.opened) == ([b.me], [a.me])
    assert any("is denied" in text for text in b.said)
    assert any("cut off from the mesh" in text for text in b.said)


async def test_links_are_made_anew_before_they_grow_old_and_nobody_notices(nodes: Made) -> None:
    a, b = await nodes(*TWO, renew_s=0.2)
    await a.dial(b)
    await b.until(lambda: b.links.count(a.me) == 1)
    [first] = a.links._links[b.me]
    await a.until(lambda: b.callers.running(a.me) == 1 and a.links._links[b.me][-1] is not first)
    assert a.links.send(b.me, note("on the new one"))
    await b.until(lambda: len(b.received) == 1)
    assert (a.opened, a.closed, b.opened, b.closed) == ([b.me], [], [a.me], [])


async def test_a_healthy_link_outlives_every_connection_and_a_call_beside_it_too(nodes: Made) -> None:
    """The port ends connections after two to four seconds; in nine the link has moved to many others."""
    a, b = await nodes(*TWO, renew_s=0.3, connection_age_s=2.0)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    ends = asyncio.get_running_loop().time() + 9.0
    sent = calls = 0
    while asyncio.get_running_loop().time() < ends:
        assert a.links.send(b.me, note(str(sent)))
        assert b.links.send(a.me, note(str(sent)))
        sent += 1
        stub = a.links.stub(b.me)
        assert stub is not None
        await stub.Score(mesh_pb2.ScoreCall(), timeout=3.0)
        calls += 1
        await asyncio.sleep(0.05)
    assert (a.opened, a.closed, b.opened, b.closed) == ([b.me], [], [a.me], [])
    await b.until(lambda: len(b.received) >= sent - LOST_AT_RENEWAL_MAX)
    assert calls == sent > 20


async def test_a_link_is_renewed_without_a_gap_where_the_peer_is_quicker(
    nodes: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the answer to its Hello and ends the old link before the one who answers is told that it was sent."""
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    [old] = b.links._links[a.me]
    goes_on, really = asyncio.Event(), b.links.accept

    class Slow:
        def __init__(self, context: Any) -> None:
            self.context = context

        def __getattr__(self, name: str) -> Any:
            return getattr(self.context, name)

        async def write(self, message: mesh_pb2.LinkMessage) -> None:
            await self.context.write(message)
            await goes_on.wait()

    monkeypatch.setattr(b.links, "accept", lambda messages, context: really(messages, cast(Any, Slow(context))))
    await a.dial(b, b.me)
    await b.until(lambda: old not in b.links._links.get(a.me, ()))
    goes_on.set()
    await b.until(lambda: len(b.links._links.get(a.me, ())) == 1)
    assert (b.opened, b.closed, a.opened, a.closed) == ([a.me], [], [b.me], [])


async def test_where_a_peer_moved_to_is_told_while_its_old_link_still_stands(nodes: Made) -> None:
    """A connection of an address that is gone stalls without an end; the next link comes beside it."""
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.told_host == "127.0.0.1")
    a.host = "127.0.0.9"
    await a.dial(b, b.me)
    await b.until(lambda: b.told_host == "127.0.0.9")
    await a.dial(b, b.me)  # nothing new, so nothing is told
    await b.until(lambda: len(b.links._links[a.me]) == 1)
    assert (b.opened, b.closed, a.opened, a.closed) == ([a.me, a.me], [], [b.me], [])


async def test_a_renewed_certificate_is_shown_on_both_sides_and_no_link_breaks(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    for node, other in ((a, b), (b, a)):
        renewed = nodes.mesh.certificate(node.key.public_key, days=20)
        node.enrolment.renewed(renewed)
        node.credentials.refresh()
        node.links.renewed()
        if node is a:  # it dialled, and b reads what TLS shows
            await b.until(lambda: b.links._links[a.me][-1].identity == a.enrolment.identity)
        else:  # the next handshake shows it
            there = await identify(other.credentials, "127.0.0.1", node.port, 3.0)
            assert there.certificate == renewed
            await a.until(lambda: a.links.identity_of(b.me) == b.enrolment.identity)  # b dialled, to show it
    stub = a.links.stub(b.me)
    assert stub is not None
    await stub.Score(mesh_pb2.ScoreCall(), timeout=5.0)
    assert (a.closed, b.closed) == ([], [])


async def test_a_peer_that_was_renewed_meanwhile_is_linked_with_again(nodes: Made) -> None:
    """Its certificate is another than the one that is remembered; the first dial fails, and who is there is asked."""
    a, b = await nodes(*TWO)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    [link] = b.links._links[a.me]
    link.close()
    await a.until(lambda: a.closed == [b.me])
    b.enrolment.renewed(nodes.mesh.certificate(b.key.public_key, days=20))
    b.credentials.refresh()
    assert await a.dial(b, b.me) == b.me
    assert a.links.identity_of(b.me) == b.enrolment.identity


async def test_a_link_ends_with_the_certificate_of_who_dialled(nodes: Made) -> None:
    [a] = await nodes(Role.NODE, days=2.0 / 86_400)
    [b] = await nodes(Role.NODE)
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    await b.until(lambda: b.closed == [a.me])
    assert await a.dial(b) is None
    assert await b.dial(a) is None
    assert b.opened == [a.me]


async def test_what_a_slow_peer_does_not_take_is_dropped_and_not_kept(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    blocked = asyncio.Event()

    async def never(peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        await blocked.wait()

    b.message_received = never  # type: ignore[method-assign]
    await a.dial(b)
    await a.until(lambda: a.opened == [b.me])
    large = mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[facts_pb2.SignedFact(body=b"x" * 16_000)] * 4))
    sent = [a.links.send(b.me, large) for _ in range(500)]
    assert not all(sent)
    blocked.set()


async def test_a_link_that_is_cancelled_while_it_ends_is_gone_all_the_same(nodes: Made) -> None:
    """gRPC cancels the call of a peer that was killed; the end of its stream may have been read just before."""
    a, b = await nodes(*TWO)
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

    call = asyncio.create_task(
        a.links._run(Link(b.me, b.hello(), b.enrolment.identity, False, "127.0.0.1"), read, slow_write)
    )
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
