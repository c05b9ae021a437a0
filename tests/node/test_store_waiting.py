"""Who waits for the journal is told how it ended: after a fault inside, and when the node ends and its disk hangs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mesh.facts import FactRange
from node.errors import KithError
from node.store import Store, _Kind
from tests.node.test_store import KEY, KNOWLEDGE, chain, no_fatal
from tests.node.working import hung


async def test_a_reading_that_fails_inside_fails_alone_and_the_rest_of_its_batch_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    facts = chain(3)
    beyond = FactRange(KNOWLEDGE, 1, 2**64 - 1)  # more than SQLite's numbers hold
    written, read, voted = await asyncio.wait_for(
        asyncio.gather(
            store.append(facts), store.read_ranges([beyond]), store.save_vote(3, "x"), return_exceptions=True
        ),
        60,
    )
    assert (written, voted) == (None, None)
    assert isinstance(read, KithError)
    assert read.code == "journal-broke"
    assert len(await asyncio.wait_for(store.read_ranges([FactRange(KNOWLEDGE, 1, 3)]), 60)) == 3
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    assert again.open(KEY.node_id)[1:] == (3, "x")
    await again.close()


async def test_a_writing_that_fails_inside_is_told_to_who_waits_and_fatal(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path / "j", said.append)
    store.open(KEY.node_id)
    with pytest.raises(KithError) as caught:
        await asyncio.wait_for(store.save_vote(1, "\ud800"), 60)  # no text of SQLite's
    assert caught.value.code == "journal-broke"
    assert "UnicodeEncodeError" in said[0]
    await store.close()


async def test_a_disk_that_hangs_keeps_no_node_from_ending_and_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr("node.store.CLOSE_WITHIN_S", 0.2)
    monkeypatch.setattr("node.store.log", lambda _, text: logged.append(text))
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    held, goes_on = await hung(store)
    waiting: list[asyncio.Future[Any]] = [
        held,
        *(asyncio.ensure_future(store.save_vote(number, "x")) for number in range(3)),
    ]
    await asyncio.sleep(0)
    try:
        await asyncio.wait_for(store.close(), 60)
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
        assert [one.code for one in found if isinstance(one, KithError)] == ["disk-slow"] * 4
        assert logged == ["the disk did not finish in 0.2 s: 4 requests are given up"]
        with pytest.raises(KithError) as caught:
            await store.save_vote(9, "x")
        assert caught.value.code == "node-stops"
    finally:
        goes_on.set()
        await asyncio.to_thread(store._thread.join, 60)
    await asyncio.sleep(0)  # what the thread says afterwards is heard by nobody
    assert not store._thread.is_alive()


async def test_closing_does_not_wait_for_room_in_a_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.store.QUEUE_MAX", 2)
    monkeypatch.setattr("node.store.READS_WAITING_MAX", 2)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    held, goes_on = await hung(store)
    more = [asyncio.ensure_future(store.has_blob(b"x" * 32)) for _ in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait_for(closing, 60)
    assert await held is True
    ended = await asyncio.gather(*more, return_exceptions=True)
    assert [one.code if isinstance(one, KithError) else one for one in ended] == [False, False, "disk-slow"]


async def test_a_write_for_which_the_queue_has_no_room_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who promised it can not take it back: a stream with a hole would keep the node from ever starting again."""
    monkeypatch.setattr("node.store.QUEUE_MAX", 2)
    monkeypatch.setattr("node.store.READS_WAITING_MAX", 2)
    said: list[str] = []
    store = Store(tmp_path / "j", said.append)
    store.open(KEY.node_id)
    held, goes_on = await hung(store, _Kind.READ)
    facts = chain(5)
    written = [asyncio.ensure_future(store.append([fact])) for fact in facts[:2]]
    await asyncio.sleep(0)
    with pytest.raises(KithError) as caught:
        await store.get_blob(b"x" * 32)
    assert (caught.value.code, said) == ("disk-slow", []), "a reading is only refused"
    with pytest.raises(KithError) as caught:
        await store.append(facts[2:3])
    assert caught.value.code == "disk-slow"
    assert len(said) == 1, "the node ends"
    goes_on.set()
    await asyncio.wait_for(asyncio.gather(held, *written, return_exceptions=True), 60)
    with pytest.raises(KithError):
        await store.append(facts[3:])
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    sequences = [fact.sequence for fact in again.open(KEY.node_id)[0]]
    assert sequences == list(range(1, len(sequences) + 1))
    await again.close()


async def test_what_nobody_waits_for_any_more_is_not_read(tmp_path: Path) -> None:
    """A member that asks for large blobs and goes away must not keep the disk reading, nor fill the memory."""
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    held, goes_on = await hung(store, _Kind.READ)
    done: list[str] = []
    left = asyncio.ensure_future(store._do(lambda: done.append("left"), _Kind.READ))
    written = asyncio.ensure_future(store._do(lambda: done.append("written")))
    await asyncio.sleep(0)
    for one in (left, written):
        one.cancel()
    await asyncio.gather(left, written, return_exceptions=True)
    goes_on.set()
    await asyncio.wait_for(held, 60)
    await asyncio.wait_for(store.has_blob(b"x" * 32), 60)
    assert done == ["written"], "what was promised is done for nobody too"
    await store.close()


async def test_reads_leave_room_for_what_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever makes a node read much, ends it."""
    monkeypatch.setattr("node.store.QUEUE_MAX", 4)
    monkeypatch.setattr("node.store.READS_WAITING_MAX", 2)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    held, goes_on = await hung(store, _Kind.READ)
    reads = [asyncio.ensure_future(store.has_blob(b"x" * 32)) for _ in range(9)]
    await asyncio.sleep(0)
    written = asyncio.ensure_future(store.save_vote(1, "x"))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait_for(asyncio.gather(held, written), 60)
    ended = await asyncio.gather(*reads, return_exceptions=True)
    assert [one.code if isinstance(one, KithError) else one for one in ended] == [False] * 2 + ["disk-slow"] * 7
    await store.close()
