"""Tests of node/store.py: what was answered is there after the process is gone, and a bad file is said to be bad."""

import asyncio
from pathlib import Path

import pytest

from mesh.facts import Fact, StreamId, make
from mesh.gossip import FactRange
from mesh.identity import NodeKey
from mesh.wire import facts_pb2
from node.errors import KithError
from node.store import Store

KEY = NodeKey.from_scalar(7)


def chain(count: int) -> list[Fact]:
    facts: list[Fact] = []
    for sequence in range(1, count + 1):
        before = facts[-1].hash if facts else b""
        content = facts_pb2.KnowledgeAdded(text=f"item {sequence}")
        facts.append(make(KEY, 1, sequence, before, sequence << 16, "knowledge_added", content))
    return facts


def no_fatal(text: str) -> None:
    raise AssertionError(text)


async def test_facts_votes_and_blobs_are_there_after_a_restart(tmp_path: Path) -> None:
    facts = chain(5)
    store = Store(tmp_path / "j", no_fatal)
    assert store.open(KEY.node_id) == ([], 0, "")
    await asyncio.gather(store.append(facts[:2]), store.append(facts[2:]), store.save_vote(3, "somebody"))
    sha256 = await store.put_blob(b"content")
    await store.close()

    again = Store(tmp_path / "j", no_fatal)
    read, term, voted_for = again.open(KEY.node_id)
    assert [fact.hash for fact in read] == [fact.hash for fact in facts]
    assert (term, voted_for) == (3, "somebody")
    assert await again.get_blob(sha256) == b"content"
    assert await again.get_blob(b"\0" * 32) is None
    assert await again.has_blob(sha256)
    await again.close()


async def test_ranges_come_in_order_and_within_the_push_limit(tmp_path: Path) -> None:
    facts = chain(6)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    stream = StreamId(KEY.node_id, 1, facts_pb2.FACT_STREAM_KNOWLEDGE)
    read = await store.read_ranges([FactRange(stream, 2, 4)])
    assert [signed.body for signed in read] == [fact.signed.body for fact in facts[1:4]]
    await store.close()


async def test_a_journal_of_another_node_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.close()
    with pytest.raises(KithError, match="belongs to node") as caught:
        Store(tmp_path / "j", no_fatal).open(NodeKey.from_scalar(8).node_id)
    assert caught.value.code == "journal-of-another-node"


@pytest.mark.parametrize("damage", ["overwritten", "truncated"])
async def test_a_damaged_journal_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "j"
    if damage == "overwritten":
        path.write_bytes(b"this is no database at all, but long enough to be looked at" * 20)
    else:
        store = Store(path, no_fatal)
        store.open(KEY.node_id)
        await store.append(chain(50))
        await store.close()
        path.write_bytes(path.read_bytes()[:10_000])
    content = path.read_bytes()
    with pytest.raises(KithError) as caught:
        Store(path, no_fatal).open(KEY.node_id)
    assert caught.value.code == "journal-unusable"
    assert "move the file away" in caught.value.remedy
    assert path.read_bytes() == content, "nothing is lost"


async def test_a_failed_write_is_fatal_and_answers_everybody(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path / "j", said.append)
    store.open(KEY.node_id)
    facts = chain(1)
    await store.append(facts)
    with pytest.raises(KithError) as caught:
        await store.append(facts)  # the same row twice breaks the uniqueness that the journal promises
    assert caught.value.code == "disk-failed"
    assert len(said) == 1, "the node heard of it before those who waited"
    await store.close()
