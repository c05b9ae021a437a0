"""Tests of node/store.py: what was answered is there after the process is gone, and a bad file is said to be bad."""

import asyncio
import hashlib
import random
import threading
from pathlib import Path

import apsw
import pytest

from mesh.certificates import Role, Roots
from mesh.facts import Fact, FactRange, Retired, StreamId, make
from mesh.identity import NodeKey
from mesh.journal import Position, fork_of
from mesh.replica import Replica
from mesh.wire import facts_pb2
from node.errors import KithError
from node.store import Store, _Kind
from scripts.throwaway import ThrowawayMesh

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
    read, term, voted_for = store.open(KEY.node_id)
    assert (list(read), term, voted_for) == ([], 0, "")
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


KNOWLEDGE = StreamId(KEY.node_id, 1, facts_pb2.FACT_STREAM_KNOWLEDGE)


def shape(signed: list[facts_pb2.SignedFact], facts: list[Fact]) -> list[object]:
    """Sequences of facts, (first, last) of retired ranges; every fact is checked to be the one it should be."""
    found: list[object] = []
    bodies = {fact.signed.body: fact.sequence for fact in facts}
    for item in signed:
        if item.HasField("retired"):
            assert item.retired.head == facts[item.retired.last - 1].hash
            found.append((item.retired.first, item.retired.last))
        else:
            found.append(bodies[item.body])
    return found


async def test_retired_facts_are_gone_and_their_places_join(tmp_path: Path) -> None:
    facts = chain(12)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    for first, last in ((2, 3), (6, 6), (4, 5), (9, 10), (9, 10)):
        await store.retire([FactRange(KNOWLEDGE, first, last)])
    assert shape(await store.read_ranges([FactRange(KNOWLEDGE, 1, 12)]), facts) == [1, (2, 6), 7, 8, (9, 10), 11, 12]
    assert shape(await store.read_ranges([FactRange(KNOWLEDGE, 4, 12)]), facts) == [(4, 6), 7, 8, (9, 10), 11, 12]
    assert shape(await store.read_ranges([FactRange(KNOWLEDGE, 1, 10)]), facts) == [1, (2, 6), 7, 8], "never ends so"
    await store.close()

    again = Store(tmp_path / "j", no_fatal)
    stored, _, _ = again.open(KEY.node_id)
    read = list(stored)
    assert [fact.sequence for fact in read] == [1, 7, 8, 11, 12]
    replica = Replica(KEY, 5, 5, random.Random(1))
    replica.restore(read, 0, "", retired=again.retired, forks=again.forks)
    assert replica.journal.durable[KNOWLEDGE].sequence == 12
    replica.validate()
    await again.close()


async def test_what_came_with_retired_ranges_is_stored_as_it_came(tmp_path: Path) -> None:
    facts = chain(6)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append([facts[2]], [Retired(KNOWLEDGE, 1, 2, facts[1].hash)])
    await store.append([facts[5]], [Retired(KNOWLEDGE, 4, 5, facts[4].hash)])
    await store.retire([FactRange(KNOWLEDGE, 3, 3)])
    assert shape(await store.read_ranges([FactRange(KNOWLEDGE, 1, 6)]), facts) == [(1, 5), 6]
    await store.close()


async def test_a_large_run_of_facts_gives_its_room_back(tmp_path: Path) -> None:
    facts = chain(400)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    sha256 = await store.put_blob(b"x" * 200_000)
    before = await store.size_bytes()
    await store.retire([FactRange(KNOWLEDGE, 1, 399)])
    assert await store.size_bytes() < before / 2 + 110_000
    store._fresh.clear()
    await store.drop_blobs([sha256])
    assert not await store.has_blob(sha256)
    assert await store.size_bytes() < before - 200_000
    await store.close()
    assert (tmp_path / "j").stat().st_size < before - 200_000, "the disk has it back"


async def test_which_blobs_were_put_of_late_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    for number in range(10):
        await store.put_blob(bytes([number]))
    assert len(store._fresh) == 10
    monkeypatch.setattr("node.store.FRESH_S", 0.0)
    await store.put_blob(b"last")
    assert len(store._fresh) == 1
    await store.close()


async def test_a_blob_just_put_is_not_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    sha256 = await store.put_blob(b"somebody is about to name it")
    await store.drop_blobs([sha256])
    assert await store.has_blob(sha256)
    await store.close()


async def test_beyond_the_budget_blobs_are_refused_and_facts_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal, budget_bytes=300_000)
    store.open(KEY.node_id)
    kept = await store.put_blob(b"x" * 100_000)
    facts = chain(3)
    outcomes = await asyncio.gather(
        store.put_blob(b"y" * 250_000), store.append(facts), store.put_blob(b"x" * 100_000), return_exceptions=True
    )
    assert isinstance(outcomes[0], KithError)
    assert outcomes[0].code == "disk-full"
    assert list(outcomes[1:]) == [None, kept]
    assert len(await store.read_ranges([FactRange(KNOWLEDGE, 1, 3)])) == 3
    await store.close()


async def test_on_a_full_disk_blobs_are_refused_and_facts_go_on_while_they_fit(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path / "j", said.append)
    store.open(KEY.node_id)
    facts = chain(300)
    await store.append(facts[:1])
    pages = store._db.execute("PRAGMA page_count").fetchall()[0][0]
    store._db.execute(f"PRAGMA max_page_count = {int(str(pages)) + 8}").fetchall()  # the disk has room for 8 pages more
    outcomes = await asyncio.gather(store.put_blob(b"y" * 250_000), store.append(facts[1:3]), return_exceptions=True)
    assert isinstance(outcomes[0], KithError)
    assert outcomes[0].code == "disk-full"
    assert (outcomes[1], said) == (None, [])
    with pytest.raises(KithError, match="what was promised before is safe"):
        await store.append(facts[3:])
    assert len(said) == 1
    await store.close()


async def test_a_fork_is_stored_and_what_it_voids_is_deleted(tmp_path: Path) -> None:
    facts = chain(5)
    other = make(KEY, 1, 4, facts[2].hash, 1, "knowledge_added", facts_pb2.KnowledgeAdded(text="another"))
    fork = fork_of(facts[3], other)
    assert fork is not None
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    assert await store.stored_beside([other, make(KEY, 2, 1, b"", 1, "deny", facts_pb2.Deny())]) == facts[2:5]
    await store.retire([FactRange(KNOWLEDGE, 1, 3)])
    assert await store.save_fork(fork) == []
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    assert list(again.open(KEY.node_id)[0]) == []
    assert again.forks == [fork]
    replica = Replica(KEY, 5, 5, random.Random(1))
    replica.restore([], 0, "", retired=again.retired, forks=again.forks)
    assert replica.journal.durable[KNOWLEDGE] == Position(3, facts[2].hash)
    await again.close()


async def test_a_proof_that_cuts_nothing_is_stored(tmp_path: Path) -> None:
    facts = chain(5)
    other = make(KEY, 1, 5, facts[3].hash, 1, "knowledge_added", facts_pb2.KnowledgeAdded(text="another"))
    fork = fork_of(facts[4], other)
    assert fork is not None
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts[:4])
    await store.save_proof(fork)
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    assert list(again.open(KEY.node_id)[0]) == facts[:4]
    assert again.forks == [fork]
    await again.close()


async def test_a_run_over_the_place_of_a_fork_is_cut(tmp_path: Path) -> None:
    facts = chain(6)
    other = make(KEY, 1, 4, facts[2].hash, 1, "knowledge_added", facts_pb2.KnowledgeAdded(text="another"))
    fork = fork_of(facts[3], other)
    assert fork is not None
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    await store.retire([FactRange(KNOWLEDGE, 2, 5)])
    assert await store.save_fork(fork) == facts[:1]
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    again.open(KEY.node_id)
    assert again.retired == [Retired(KNOWLEDGE, 2, 3, facts[2].hash)]
    await again.close()


@pytest.mark.parametrize(("last", "kept"), [(0, []), (1, [0]), (3, [0]), (6, [0, 5])])
async def test_a_denied_stream_is_cut_and_ends_there_after_a_restart(
    tmp_path: Path, last: int, kept: list[int]
) -> None:
    """Also where the end lies in a run of retired facts: the denial names the head of the part that stays."""
    facts = chain(6)
    denied = facts_pb2.Deny(node_id=KEY.node_id, epoch=1)
    if last:
        denied.last_positions.add(incarnation=1, stream=KNOWLEDGE.stream, sequence=last, head=facts[last - 1].hash)
    deny = make(NodeKey.from_scalar(5), 1, 1, b"", 1, "deny", denied)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append([*facts, deny])
    await store.retire([FactRange(KNOWLEDGE, 2, 5)])
    end = Position(last, facts[last - 1].hash if last else b"")
    assert await store.cut_streams([(KNOWLEDGE, end)]) == [*[facts[place] for place in kept], deny]
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    stored = list(again.open(KEY.node_id)[0])
    replica = Replica(NodeKey.from_scalar(6), 5, 5, random.Random(1))
    replica.restore(stored, 0, "", retired=again.retired, forks=again.forks)
    assert replica.journal.durable.get(KNOWLEDGE, Position()) == end
    assert replica.library.tick() == []
    await again.close()


def first_release(path: Path, facts: list[Fact], blob: bytes) -> None:
    """A journal as kithmesh 0.1 left it, written by hand."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute(
        """
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE facts (
            id INTEGER PRIMARY KEY,
            author TEXT NOT NULL, incarnation TEXT NOT NULL, stream INTEGER NOT NULL, sequence INTEGER NOT NULL,
            body BLOB NOT NULL, signature BLOB NOT NULL,
            UNIQUE (author, incarnation, stream, sequence)
        );
        CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
        PRAGMA user_version = 1;
        """
    )
    db.executemany("INSERT INTO meta VALUES (?, ?)", [("node_id", KEY.node_id), ("term", "7"), ("voted_for", "x")])
    rows = [
        (KEY.node_id, f"{1:016x}", KNOWLEDGE.stream, fact.sequence, fact.signed.body, fact.signed.signature)
        for fact in facts
    ]
    db.executemany(
        "INSERT INTO facts (author, incarnation, stream, sequence, body, signature) VALUES (?, ?, ?, ?, ?, ?)", rows
    )
    db.execute("INSERT INTO blobs VALUES (?, ?)", (hashlib.sha256(blob).digest(), blob))
    db.close()


async def test_a_journal_of_the_first_release_is_brought_up_to_date(tmp_path: Path) -> None:
    facts = chain(20)
    first_release(tmp_path / "j", facts, b"content")
    store = Store(tmp_path / "j", no_fatal)
    read, term, voted_for = store.open(KEY.node_id)
    assert [fact.hash for fact in read] == [fact.hash for fact in facts]
    assert (term, voted_for, store.retired, store.forks) == (7, "x", [], [])
    assert [ref.size_bytes for ref in store.blob_refs()] == [7]
    await store.retire([FactRange(KNOWLEDGE, 1, 19)])
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    assert [fact.sequence for fact in again.open(KEY.node_id)[0]] == [20]
    assert again._db.execute("PRAGMA auto_vacuum").fetchall() == [(2,)]
    await again.close()


async def test_a_journal_of_the_second_release_gets_room_for_certificates(tmp_path: Path) -> None:
    facts = chain(20)
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    await store.retire([FactRange(KNOWLEDGE, 1, 10)])
    await store.save_vote(3, "x")
    await store.close()
    db = apsw.Connection(str(tmp_path / "j"))
    db.execute("DROP TABLE certificates; PRAGMA user_version = 2").fetchall()
    db.close()
    again = Store(tmp_path / "j", no_fatal)
    read, term, voted_for = again.open(KEY.node_id)
    assert [fact.hash for fact in read] == [fact.hash for fact in facts[10:]]
    assert (term, voted_for, len(again.retired), again.certificates) == (3, "x", 1, [])
    await again.close()


async def test_one_certificate_is_kept_of_each_author_and_role(tmp_path: Path) -> None:
    mesh = ThrowawayMesh()
    roots = Roots([mesh.authority.ca_der])
    node, worker, later, other = (
        roots.read(mesh.certificate(KEY.public_key, Role.NODE)),
        roots.read(mesh.certificate(KEY.public_key, Role.WORKER)),
        roots.read(mesh.certificate(KEY.public_key, Role.NODE, days=40)),
        roots.read(mesh.certificate(NodeKey.from_scalar(77).public_key)),
    )
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.save_certificates([node, worker, other])
    await store.save_certificates([later])
    await store.close()
    again = Store(tmp_path / "j", no_fatal)
    again.open(KEY.node_id)
    assert sorted(again.certificates) == sorted(one.certificate for one in (later, worker, other))
    await again.close()


async def test_a_journal_of_a_later_release_is_refused(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "j"))
    db.execute("PRAGMA user_version = 99").fetchall()
    db.close()
    with pytest.raises(KithError, match="newer") as caught:
        Store(tmp_path / "j", no_fatal).open(KEY.node_id)
    assert caught.value.code == "journal-newer"


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


@pytest.mark.parametrize("sequence", [1, 4, 6])
@pytest.mark.parametrize("column", ["body", "row"])
async def test_a_changed_or_missing_fact_is_found_at_the_start(tmp_path: Path, sequence: int, column: str) -> None:
    """The pages are whole, so SQLite sees nothing: the hash chain does, and at its end the signature."""
    path = tmp_path / "j"
    facts = chain(6)
    store = Store(path, no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    await store.close()
    db = apsw.Connection(str(path))
    if column == "body":
        changed = facts[sequence - 1].raw.replace(b"item", b"idem")
        assert changed != facts[sequence - 1].raw
        db.execute("UPDATE facts SET body = ? WHERE sequence = ?", (changed, sequence)).fetchall()
    else:
        db.execute("DELETE FROM facts WHERE sequence = ?", (sequence,)).fetchall()
    db.close()
    again = Store(path, no_fatal)
    replica = Replica(KEY, 5, 5, random.Random(1))
    if (sequence, column) == (6, "row"):
        with again.restoring():
            replica.restore(*again.open(KEY.node_id))
        assert replica.journal.durable[KNOWLEDGE].sequence == 5, "as a backup: gossip brings the rest back"
    else:
        with pytest.raises(KithError) as caught, again.restoring():
            replica.restore(*again.open(KEY.node_id))
        assert caught.value.code == "journal-unusable"
    await again.close()


async def test_a_reading_that_the_disk_fails_fails_alone(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path / "j", said.append)
    store.open(KEY.node_id)
    facts = chain(2)
    busy, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        assert go_on.wait(20)

    first = asyncio.create_task(store._do(wait, _Kind.READ))
    assert await asyncio.to_thread(busy.wait, 20)
    written = asyncio.create_task(store.append(facts[:1]))
    failing = asyncio.create_task(store._do(lambda: store._db.execute("SELECT * FROM nowhere").fetchall(), _Kind.READ))
    later = asyncio.create_task(store.append(facts[1:]))
    await asyncio.sleep(0)  # now these three wait, for one transaction
    go_on.set()
    with pytest.raises(KithError, match="could not be read") as caught:
        await failing
    assert caught.value.code == "disk-failed"
    assert list(await asyncio.gather(first, written, later)) == [None] * 3
    assert len(await store.read_ranges([FactRange(KNOWLEDGE, 1, 2)])) == 2
    assert said == []
    await store.close()


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


async def test_after_a_failed_write_none_is_done_so_that_no_stream_gets_a_hole(tmp_path: Path) -> None:
    """What was to be written next may be smaller, or the disk has room again, before the node has ended."""
    said: list[str] = []
    path = tmp_path / "j"
    store = Store(path, said.append)
    store.open(KEY.node_id)
    facts = chain(300)
    await store.append(facts[:1])
    pages = store._db.execute("PRAGMA page_count").fetchall()[0][0]
    store._db.execute(f"PRAGMA max_page_count = {int(str(pages)) + 8}").fetchall()  # the disk has room for 8 pages more
    failed = asyncio.create_task(store.append(facts[1:299]))
    with pytest.raises(KithError, match="what was promised before is safe"):
        await failed
    for write in (store.append(facts[299:]), store.save_vote(7, "x")):
        with pytest.raises(KithError) as caught:
            await write
        assert caught.value.code == "disk-failed"
    assert len(await store.read_ranges([FactRange(KNOWLEDGE, 1, 300)])) == 1
    assert len(said) == 1
    await store.close()
    again = Store(path, no_fatal)
    restored, term, _ = again.open(KEY.node_id)
    assert ([fact.sequence for fact in restored], term) == ([1], 0)
    await again.close()
