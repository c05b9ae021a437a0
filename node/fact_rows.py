"""Facts as rows: how the journal's tables are written and read. All of it runs in the store's thread.

Invariant: of a stream, the rows of `facts` and `retired` together are every sequence from 1 to the last, each once; two
retired runs never touch, and none is last.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from mesh.facts import Fact, FactRange, Retired, StreamId, read
from mesh.identity import NodeId
from mesh.journal import Fork, Position, places_beside
from mesh.wire import facts_pb2

#: Bytes of facts in one push: stays well below gRPC's message limit, and a slow peer is not flooded.
PUSH_BYTES_MAX = 1 << 20

_OF_STREAM = "author = ? AND incarnation = ? AND stream = ?"


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Reading a journal makes many objects that live on: looking them through for garbage costs time and finds none,
    now and whenever the collector takes all there is. So they are left out for good; what refers to itself must not
    be made here."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()
            gc.enable()


class FactRows:
    def __init__(self) -> None:
        self.db: apsw.Connection

    def all_facts(self) -> Iterator[Fact]:
        """In the order they were stored, read one by one: all of them at once are 1 GB a million."""
        for raw, signature in self.db.execute("SELECT body, signature FROM facts ORDER BY id"):
            yield read(raw, signature)

    def all_retired(self) -> list[Retired]:
        rows = self.db.execute("SELECT author, incarnation, stream, first, last, head FROM retired")
        return [
            Retired(StreamId(NodeId(author), int(incarnation, 16), stream), first, last, bytes(head))
            for author, incarnation, stream, first, last, head in rows
        ]

    def all_forks(self) -> list[Fork]:
        rows = self.db.execute("SELECT one_body, one_signature, other_body, other_signature FROM forks")
        return [
            Fork(read(one, one_signature), read(other, other_signature))
            for one, one_signature, other, other_signature in rows
        ]

    def append(self, facts: Sequence[Fact], retired: Sequence[Retired]) -> None:
        for gone in retired:
            self._insert_retired(gone)
        sql = "INSERT INTO facts (author, incarnation, stream, sequence, body, signature) VALUES (?, ?, ?, ?, ?, ?)"
        rows = [(*_key(fact.stream_id), fact.sequence, fact.raw, fact.signature) for fact in facts]
        self.db.executemany(sql, rows).fetchall()

    def retire(self, ranges: Sequence[FactRange]) -> None:
        """Each range begins and ends with a stored fact; what lies between may be retired already."""
        for gone in ranges:
            key = _key(gone.stream_id)
            last = self._select(
                f"SELECT body, signature FROM facts WHERE {_OF_STREAM} AND sequence = ?", (*key, gone.last)
            )
            if not last:
                continue  # retired before, by a pass that was not heard of, or void
            head = read(*last[0]).hash
            place = (*key, gone.first, gone.last)
            self.db.execute(f"DELETE FROM facts WHERE {_OF_STREAM} AND sequence BETWEEN ? AND ?", place).fetchall()
            self.db.execute(f"DELETE FROM retired WHERE {_OF_STREAM} AND first BETWEEN ? AND ?", place).fetchall()
            self._insert_retired(Retired(gone.stream_id, gone.first, gone.last, head))

    def save_fork(self, fork: Fork) -> None:
        key = _key(fork.stream_id)
        one, other = fork.one, fork.other
        self.db.execute(
            "INSERT OR REPLACE INTO forks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, fork.sequence, one.raw, one.signature, other.raw, other.signature),
        ).fetchall()
        self.cut(fork.stream_id, Position(fork.sequence - 1, fork.one.predecessor))

    def cut(self, stream_id: StreamId, end: Position) -> None:
        """Delete what comes after `end`. Of a run that reaches over it the part before stays: whoever proved the end,
        by a fork or a denial, names its head."""
        key = _key(stream_id)
        self.db.execute(f"DELETE FROM facts WHERE {_OF_STREAM} AND sequence > ?", (*key, end.sequence)).fetchall()
        runs = self._select(f"SELECT first FROM retired WHERE {_OF_STREAM} AND last > ?", (*key, end.sequence))
        self.db.execute(f"DELETE FROM retired WHERE {_OF_STREAM} AND last > ?", (*key, end.sequence)).fetchall()
        for (first,) in runs:
            if int(first) <= end.sequence:
                self._insert_retired(Retired(stream_id, int(first), end.sequence, end.head))

    def beside(self, facts: Sequence[Fact]) -> list[Fact]:
        sql = f"SELECT body, signature FROM facts WHERE {_OF_STREAM} AND sequence = ?"
        found: list[Fact] = []
        for place in places_beside(facts):
            found += [read(*row) for row in self._select(sql, (*_key(place.stream_id), place.sequence))]
        return found

    def read(self, ranges: Sequence[FactRange]) -> Iterator[facts_pb2.SignedFact]:
        size = 0
        for wanted in ranges:
            pending: facts_pb2.SignedFact | None = None
            for item in self._items(wanted):
                if isinstance(item, Retired):
                    pending = item.wire()
                    continue
                size += len(item.body) + len(item.signature)
                if size > PUSH_BYTES_MAX:
                    return
                if pending is not None:
                    yield pending
                    pending = None
                yield item

    def _items(self, wanted: FactRange) -> Iterator[facts_pb2.SignedFact | Retired]:
        """Facts and retired runs of a range, in order. A run that began before the range is cut to it."""
        key = _key(wanted.stream_id)
        runs = self._select(
            f"SELECT first, last, head FROM retired WHERE {_OF_STREAM} AND first < ? AND last < ? AND first >= "
            f"ifnull((SELECT max(first) FROM retired WHERE {_OF_STREAM} AND first <= ?), 0) ORDER BY first",
            (*key, wanted.last, wanted.last, *key, wanted.first),
        )
        runs = [run for run in runs if run[1] >= wanted.first]
        facts = self.db.execute(
            f"SELECT sequence, body, signature FROM facts WHERE {_OF_STREAM} AND sequence BETWEEN ? AND ? "
            "ORDER BY sequence",
            (*key, wanted.first, wanted.last),
        )
        for sequence, body, signature in facts:
            while runs and runs[0][0] < sequence:
                first, last, head = runs.pop(0)
                yield Retired(wanted.stream_id, max(first, wanted.first), last, bytes(head))
            yield facts_pb2.SignedFact(body=body, signature=signature)

    def _select(self, sql: str, values: tuple[str | int, ...]) -> list[Any]:
        return self.db.execute(sql, values).fetchall()

    def _insert_retired(self, gone: Retired) -> None:
        """Joined with the runs that touch it."""
        key = _key(gone.stream_id)
        first, last, head = gone.first, gone.last, gone.head
        # Runs do not overlap, so only the last that begins before may touch; by key, for a stream has a run a job.
        before = self._select(
            f"SELECT first, last FROM retired WHERE {_OF_STREAM} AND first < ? ORDER BY first DESC LIMIT 1",
            (*key, first),
        )
        if before and int(before[0][1]) != first - 1:
            before = []
        after = self._select(
            f"SELECT first, last, head FROM retired WHERE {_OF_STREAM} AND first = ?", (*key, last + 1)
        )
        for row in [*before, *after]:
            self.db.execute(f"DELETE FROM retired WHERE {_OF_STREAM} AND first = ?", (*key, row[0])).fetchall()
        if before:
            first = int(before[0][0])
        if after:
            last, head = int(after[0][1]), bytes(after[0][2])
        self.db.execute("INSERT INTO retired VALUES (?, ?, ?, ?, ?, ?)", (*key, first, last, head)).fetchall()


def _key(stream_id: StreamId) -> tuple[str, str, int]:
    return stream_id.author, f"{stream_id.incarnation:016x}", stream_id.stream
