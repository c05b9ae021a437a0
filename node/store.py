"""The node's disk: facts, blobs, term and vote in one SQLite file.

Idea: one connection in one thread. Writers hand over what to write and await; the thread takes all that waits, writes
it in one transaction with one sync (group commit), and answers everybody. WAL with synchronous=FULL, so an answer means
that the data survives a power cut. apsw brings a current SQLite: the standard library's may carry the WAL-reset bug.

An error while writing facts or votes is fatal to the node: it could no longer keep its word (`on_fatal`).

Does not: decide what is stored, or clean up (retention is the journal's).
"""

import asyncio
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from mesh.facts import Fact, FactError, StreamId, parse
from mesh.gossip import FactRange
from mesh.identity import NodeId
from mesh.wire import common_pb2, facts_pb2
from node.errors import ExitCode, KithError

#: Bytes of facts in one push: stays well below gRPC's message limit, and a slow peer is not flooded.
PUSH_BYTES_MAX = 1 << 20
#: Requests that may wait for the disk: a disk that hangs must not eat the memory.
QUEUE_MAX = 10_000
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (
    id INTEGER PRIMARY KEY,
    author TEXT NOT NULL, incarnation TEXT NOT NULL, stream INTEGER NOT NULL, sequence INTEGER NOT NULL,
    body BLOB NOT NULL, signature BLOB NOT NULL,
    UNIQUE (author, incarnation, stream, sequence)
);
CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
"""

T = TypeVar("T")
_Job = tuple[Callable[[], object], "asyncio.Future[object]"]


class Store:
    """Every method but `open` and `close` is awaited on the event loop and runs in the store's thread."""

    def __init__(self, path: Path, on_fatal: Callable[[str], None]) -> None:
        self._path = path
        self._on_fatal = on_fatal
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_MAX)
        self._thread = threading.Thread(target=self._run, name="kith-store", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: apsw.Connection | None = None

    def open(self, node_id: NodeId) -> tuple[list[Fact], int, str]:
        """Open or create the file. Returns all facts in the order they were stored, the term and the vote.

        Raises `KithError`: not writable, damaged, of another node, of a newer version.
        """
        try:
            self._connection = apsw.Connection(str(self._path))
            self._prepare(node_id)
            facts = [
                parse(facts_pb2.SignedFact(body=body, signature=signature))
                for body, signature in self._connection.execute("SELECT body, signature FROM facts ORDER BY id")
            ]
        except (apsw.Error, FactError, OSError) as error:
            raise KithError(
                "journal-unusable",
                f"the journal {self._path} can not be used: {error}",
                "Check the disk and the folder's permissions; or move the file away: the node then starts empty and "
                "gets the facts back from its peers.",
                ExitCode.CANNOT_START,
            ) from error
        term = int(self._meta("term") or 0)
        voted_for = self._meta("voted_for") or ""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return facts, term, voted_for

    async def close(self) -> None:
        """Finish what waits, then close."""
        if self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
        if self._connection is not None:
            self._connection.close()

    async def append(self, facts: Sequence[Fact]) -> None:
        """Store facts durably, in this order."""
        rows = [
            (
                fact.author,
                f"{fact.stream_id.incarnation:016x}",
                fact.stream_id.stream,
                fact.sequence,
                fact.signed.body,
                fact.signed.signature,
            )
            for fact in facts
        ]
        sql = "INSERT INTO facts (author, incarnation, stream, sequence, body, signature) VALUES (?, ?, ?, ?, ?, ?)"
        await self._do(lambda: self._db.executemany(sql, rows))

    async def save_vote(self, term: int, voted_for: str) -> None:
        """Store term and vote durably."""
        rows = [("term", str(term)), ("voted_for", voted_for)]
        await self._do(lambda: self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows))

    async def read_ranges(self, ranges: Sequence[FactRange]) -> list[facts_pb2.SignedFact]:
        """Facts of the ranges, in stream order, at most `PUSH_BYTES_MAX` bytes; the rest is asked for again."""
        return await self._do(lambda: list(self._read(ranges)))

    async def put_blob(self, content: bytes) -> bytes:
        """Store a blob durably. Returns its SHA-256."""
        sha256 = hashlib.sha256(content).digest()
        await self._do(
            lambda: self._db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (sha256, content)).fetchall()
        )
        return sha256

    async def get_blob(self, sha256: bytes) -> bytes | None:
        def read() -> bytes | None:
            rows = self._db.execute("SELECT content FROM blobs WHERE sha256 = ?", (sha256,)).fetchall()
            return bytes(rows[0][0]) if rows else None  # type: ignore[arg-type]

        return await self._do(read)

    async def has_blob(self, sha256: bytes) -> bool:
        return await self._do(
            lambda: bool(self._db.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (sha256,)).fetchall())
        )

    async def drop_blobs(self, sha256: Sequence[bytes]) -> None:
        """Delete these; those that are not here are no error."""
        rows = [(one,) for one in sha256]
        await self._do(lambda: self._db.executemany("DELETE FROM blobs WHERE sha256 = ?", rows))

    def blob_refs(self) -> list[common_pb2.BlobRef]:
        """All blobs, for the start; called between `open` and the first use of the thread."""
        rows = self._db.execute("SELECT sha256, length(content) FROM blobs")
        return [common_pb2.BlobRef(sha256=sha256, size_bytes=size) for sha256, size in rows]

    async def _do(self, job: Callable[[], T]) -> T:
        assert self._loop is not None
        future: asyncio.Future[object] = self._loop.create_future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full:
            raise KithError("disk-slow", "the disk does not keep up", "Check the disk; try again later.") from None
        return await future  # type: ignore[return-value]

    @property
    def _db(self) -> apsw.Connection:
        assert self._connection is not None
        return self._connection

    def _run(self) -> None:
        """The thread: one transaction for all that waits."""
        stopping = False
        while not stopping:
            batch: list[_Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    stopping = True
                    break
                batch.append(job)
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            self._commit(batch)

    def _commit(self, batch: list[_Job]) -> None:
        if not batch:
            return
        results: list[object] = []
        try:
            with self._db:
                for work, _ in batch:
                    results.append(work())
        except apsw.Error as error:
            text = f"{type(error).__name__}: {error}"
            problem = KithError(
                "disk-failed",
                f"the journal could not be written ({text}); what was promised before is safe",
                "Make room or mend the disk, then start the node again.",
                ExitCode.FAILED,
            )
            # First the node learns that it has to end, then those who wait that they waited in vain.
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._on_fatal, problem.message)
            for _, future in batch:
                self._answer(future, problem)
            return
        for (_, future), result in zip(batch, results, strict=True):
            self._answer(future, result)

    def _answer(self, future: "asyncio.Future[object]", result: object) -> None:
        def set_result() -> None:
            if future.cancelled():
                return
            if isinstance(result, KithError):
                future.set_exception(result)
            else:
                future.set_result(result)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(set_result)

    def _read(self, ranges: Sequence[FactRange]) -> Iterator[facts_pb2.SignedFact]:
        size = 0
        sql = (
            "SELECT body, signature FROM facts WHERE author = ? AND incarnation = ? AND stream = ? "
            "AND sequence BETWEEN ? AND ? ORDER BY sequence"
        )
        for wanted in ranges:
            stream_id: StreamId = wanted.stream_id
            key = (stream_id.author, f"{stream_id.incarnation:016x}", stream_id.stream, wanted.first, wanted.last)
            for body, signature in self._db.execute(sql, key):
                size += len(body) + len(signature)
                if size > PUSH_BYTES_MAX:
                    return
                yield facts_pb2.SignedFact(body=body, signature=signature)

    def _prepare(self, node_id: NodeId) -> None:
        db = self._db
        db.set_busy_timeout(2000)
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL").fetchall()
        db.execute("PRAGMA cache_size = -4096").fetchall()
        version = db.execute("PRAGMA user_version").fetchall()[0][0]
        if version == 0:
            with db:
                db.execute(_SCHEMA)
                db.execute("INSERT INTO meta VALUES ('node_id', ?)", (node_id,))
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise KithError(
                "journal-newer",
                f"the journal {self._path} was written by a newer kithmesh (schema {version})",
                "Start the newer version, or another --data-dir.",
                ExitCode.CANNOT_START,
            )
        owner = self._meta("node_id")
        if owner != node_id:
            raise KithError(
                "journal-of-another-node",
                f"the journal {self._path} belongs to node {owner}, and this node is {node_id}",
                "Put back the node.key that belongs to it, or use another --data-dir.",
                ExitCode.CANNOT_START,
            )

    def _meta(self, key: str) -> str | None:
        rows = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchall()
        return str(rows[0][0]) if rows else None
