"""The shell's end: what waits for the disk is finished where the disk works, and given up where it hangs."""

import asyncio
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh import effects
from mesh.facts import Fact
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2, membership_pb2, mesh_pb2
from node.authors import Authors
from node.shell import Shell
from node.store import Store
from tests.node.working import KEY, no_fatal


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
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait()

    held = asyncio.ensure_future(store._do(hang))
    assert await asyncio.to_thread(hangs.wait, 60)
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
        assert isinstance(said, asyncio.CancelledError if hangs_for_good else Fact)
    finally:
        goes_on.set()
        await asyncio.to_thread(store._thread.join, 60)
