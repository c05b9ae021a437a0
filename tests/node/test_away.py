"""Tests of node/away.py: only a node that was really away for a year starts empty, and nothing is lost by it."""

import json
from pathlib import Path

import apsw
import pytest

from mesh.facts import Fact, make
from mesh.identity import NodeKey
from mesh.wire import common_pb2, facts_pb2, work_pb2
from node.away import set_aside
from node.store import Store

KEY = NodeKey.from_scalar(7)
YEAR_S = 365 * 24 * 3600.0
THEN_S = 1_700_000_000.0


def no_fatal(text: str) -> None:
    raise AssertionError(text)


def jobs() -> list[Fact]:
    """One open job and one that is cancelled."""
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="怎么办?", panel=3))
    blob = common_pb2.BlobRef(sha256=b"d" * 32, size_bytes=5)
    contents = [
        ("job_submitted", facts_pb2.JobSubmitted(job_id=b"o" * 32, request=request, blobs=[blob])),
        ("job_submitted", facts_pb2.JobSubmitted(job_id=b"c" * 32)),
        ("job_cancelled", facts_pb2.JobCancelled(job_id=b"c" * 32)),
    ]
    facts: list[Fact] = []
    for kind, content in contents:
        before = facts[-1].hash if facts else b""
        facts.append(make(KEY, 1, len(facts) + 1, before, int(THEN_S * 1000) << 16, kind, content))
    return facts


def names(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


async def written(path: Path, facts: list[Fact], *, seen: bool = True) -> None:
    store = Store(path, no_fatal)
    store.open(KEY.node_id)
    await store.append(facts)
    await store.save_vote(3, "somebody")
    if seen:
        await store.note_seen(int(THEN_S * 1000))
    await store.close()


async def test_after_a_year_the_journal_is_moved_and_open_jobs_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await written(path, jobs())
    said = set_aside(path, THEN_S + YEAR_S + 1)
    assert "starts empty" in said
    assert "1 open jobs" in said
    assert not path.exists()
    [listed] = names(tmp_path, "open-jobs-*.jsonl")
    assert listed.stat().st_mode & 0o777 == 0o600, "questions stand in it"
    [row] = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
    assert (row["job_id"], row["submitted_ms"], row["blobs"]) == ((b"o" * 32).hex(), THEN_S * 1000, [(b"d" * 32).hex()])
    assert "panel: 3" in row["request"]
    store = Store(path, no_fatal)
    assert list(store.open(KEY.node_id)[0]) == []
    await store.close()
    [aside] = names(tmp_path, "journal.db.away-*")
    moved_back = Store(aside, no_fatal)
    assert [fact.hash for fact in moved_back.open(KEY.node_id)[0]] == [fact.hash for fact in jobs()]
    await moved_back.close()


@pytest.mark.parametrize("after_s", [0.0, YEAR_S, -9 * YEAR_S])
async def test_a_shorter_absence_changes_nothing(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "journal.db"
    await written(path, jobs())
    assert set_aside(path, THEN_S + after_s) == ""
    assert names(tmp_path) == [path]


async def test_a_start_with_the_clock_in_the_past_does_not_make_a_node_away(tmp_path: Path) -> None:
    """A board without a battery for its clock begins years ago, until it hears the time; it may be stopped before."""
    path = tmp_path / "journal.db"
    await written(path, jobs())
    store = Store(path, no_fatal)
    store.open(KEY.node_id)
    await store.note_seen(int((THEN_S - 9 * YEAR_S) * 1000))
    await store.close()
    assert set_aside(path, THEN_S + 60) == ""
    assert names(tmp_path) == [path]
    assert set_aside(path, THEN_S + YEAR_S + 1), "it was last here when its clock was right"


async def test_a_journal_that_never_said_when_is_kept(tmp_path: Path) -> None:
    """Of the first release: nobody knows how old it is."""
    path = tmp_path / "journal.db"
    await written(path, jobs(), seen=False)
    assert set_aside(path, THEN_S + 9 * YEAR_S) == ""
    assert path.exists()


async def test_without_open_jobs_nothing_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await written(path, [])
    assert "open jobs" not in set_aside(path, THEN_S + 2 * YEAR_S)
    assert not names(tmp_path, "open-jobs-*")


def test_what_is_not_there_or_no_journal_is_left_alone(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "none", THEN_S) == ""
    (tmp_path / "damaged").write_bytes(b"this is no database at all, but long enough to be looked at" * 20)
    assert set_aside(tmp_path / "damaged", THEN_S + 9 * YEAR_S) == ""
    apsw.Connection(str(tmp_path / "empty")).close()
    assert set_aside(tmp_path / "empty", THEN_S + 9 * YEAR_S) == ""
