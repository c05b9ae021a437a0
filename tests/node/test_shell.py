"""The shell's end: what waits for the disk is finished where the disk works, and given up where it hangs."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh import effects, events
from mesh.facts import Fact, FactRange, StreamId
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2, work_pb2
from node.authors import Authors
from node.errors import KithError
from node.shell import Shell
from node.store import Store
from node.trimming import NAME_CHARACTERS_MAX
from tests.node.working import KEY, PATIENCE, hung, no_fatal


class Nobody:
    """Implements `shell.Listener`."""

    def ticking(self) -> None: ...
    def carry_out(self, effect: effects.Effect) -> None: ...
    def delivered(self, peer: NodeId, message: mesh_pb2.LinkMessage) -> None: ...
    def member_changed(self, node_id: NodeId, state: int) -> None: ...
    def leader_changed(self, token: common_pb2.FencingToken | None) -> None: ...
    def facts_applied(self, facts: Sequence[Fact]) -> None: ...


@pytest.mark.parametrize("hangs_for_good", [False, True])
async def test_a_disk_that_hangs_does_not_keep_the_shell_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs_for_good: bool
) -> None:
    monkeypatch.setattr("node.shell.SETTLED_WITHIN_S", 0.2 if hangs_for_good else 60.0)
    monkeypatch.setattr("node.store.CLOSE_WITHIN_S", 0.2 if hangs_for_good else 60.0)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    replica = Replica(KEY, 1, 1, random.Random(1))
    shell = Shell(replica, store, membership_pb2.Hello, Nobody(), Authors(None, []))
    held, goes_on = await hung(store)
    saying = asyncio.ensure_future(shell.author("knowledge_added", facts_pb2.KnowledgeAdded(text="x")))
    await asyncio.sleep(0)
    try:
        stopping = asyncio.ensure_future(shell.stop())
        await asyncio.sleep(0)
        if not hangs_for_good:
            goes_on.set()
        await asyncio.wait_for(stopping, 60)
        await asyncio.wait_for(store.close(), 60)
        said, _ = await asyncio.wait_for(asyncio.gather(saying, held, return_exceptions=True), 60)
        assert isinstance(said, KithError if hangs_for_good else Fact)
    finally:
        goes_on.set()
        await asyncio.to_thread(store._thread.join, 60)


async def test_what_a_peer_says_of_members_is_cut_before_the_machines_hear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "j", no_fatal)
    shell = Shell(Replica(KEY, 1, 1, random.Random(1)), store, membership_pb2.Hello, Nobody(), Authors(None, []))
    heard: list[events.Event] = []
    monkeypatch.setattr(shell, "post", heard.append)
    message = mesh_pb2.LinkMessage(probe=membership_pb2.Probe(probe_id=7))
    message.probe.members.add(node_id="c" * 32, name="x" * 1_000_000)
    await shell.message_received(NodeId("a" * 32), message)
    [one] = heard
    assert isinstance(one, events.Received)
    assert one.message.probe.probe_id == 7
    assert len(one.message.probe.members[0].name) == NAME_CHARACTERS_MAX
    # The leader tells all others of each task what its worker says.
    small, large = work_pb2.TaskEvent(task_index=3), work_pb2.TaskEvent(task_index=3)
    large.progress.phase = "x" * 1_000_000
    heard.clear()
    for event in (small, large):
        report = work_pb2.WorkReport(running=[small, event])
        await shell.message_received(NodeId("a" * 32), mesh_pb2.LinkMessage(task_event=event))
        await shell.message_received(NodeId("a" * 32), mesh_pb2.LinkMessage(work_report=report))
    assert [one.message.WhichOneof("message") for one in heard if isinstance(one, events.Received)] == [
        "task_event",
        "work_report",
    ]
    assert max(one.message.ByteSize() for one in heard if isinstance(one, events.Received)) < 100


async def test_what_a_peer_lacks_is_read_once_at_a_time_however_often_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that says a thousand times a second that it has nothing had the store read a thousand pushes: they filled
    the memory, and at last the store's queue, which ends the node."""
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    shell = Shell(Replica(KEY, 1, 1, random.Random(1)), store, membership_pb2.Hello, Nobody(), Authors(None, []))
    begun, goes_on, reads = asyncio.Event(), asyncio.Event(), 0
    read = store.read_ranges

    async def held(ranges: Sequence[FactRange]) -> list[facts_pb2.SignedFact]:
        nonlocal reads
        reads += 1
        begun.set()
        await goes_on.wait()
        return await read(ranges)

    monkeypatch.setattr(store, "read_ranges", held)
    missing = (FactRange(StreamId(KEY.node_id, 1, 1), 1, 9),)
    peers = NodeId("a" * 32), NodeId("b" * 32)
    async with asyncio.timeout(60):
        for _ in range(1000):
            for peer in peers:
                shell._carry_out(effects.PushStored(peer, missing))
            await asyncio.sleep(0)
        await begun.wait()
        assert reads == 2, "one for each peer"
        goes_on.set()
        await shell._duties.settled()
        assert reads == 4, "and what was asked for meanwhile, once"
        shell._carry_out(effects.PushStored(peers[0], missing))
        await shell._duties.settled()
        assert reads == 5
        await shell.stop()
        await store.close()


async def test_who_says_something_hears_that_the_disk_failed(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path / "j", told.append)
    store.open(KEY.node_id)
    shell = Shell(Replica(KEY, 1, 1, random.Random(1)), store, membership_pb2.Hello, Nobody(), Authors(None, []))
    await store._do(lambda: store._db.execute("DROP TABLE facts").fetchall())
    with pytest.raises(KithError) as caught:
        async with asyncio.timeout(PATIENCE):
            await shell.author("knowledge_added", facts_pb2.KnowledgeAdded(text="x"))
    assert caught.value.code == "disk-failed"
    assert told
    await shell.stop()
    await store.close()
