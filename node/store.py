"""The node's disk: facts, blobs, term and vote in one SQLite file.

Idea: one connection in one thread. Writers hand over what to write and await; the thread takes all that waits, writes
it in one transaction with one sync (group commit), and answers everybody. WAL with synchronous=FULL, so an answer means
that the data survives a power cut. apsw brings a current SQLite: the standard library's may carry the WAL-reset bug.

An error while writing facts or votes is fatal to the node: it could no longer keep its word (`on_fatal`). None is
written after it, also where the disk has room again: each fact names the one before, and a stream with a hole could not
be read at the next start. A blob for which there is no room is refused, and a reading that fails fails alone. Whoever
waits is told in any case, also at the end of a node whose disk hangs.

Does not: decide what is stored or dropped (mesh/retention.py does).
"""

import asyncio
import contextlib
import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw

from mesh.certificates import Identity
from mesh.facts import Fact, FactError, FactRange, Retired, StreamId
from mesh.identity import NodeId
from mesh.journal import Fork, Position
from mesh.wire import common_pb2, facts_pb2
from node import schema
from node.config import NodeConfig
from node.errors import ExitCode, KithError
from node.fact_rows import FactRows, without_collecting
from node.journal_file import InPlace, full_at_start, make_private, no_room
from node.logs import log, where
from node.once import Once

#: Requests that may wait for the disk: a disk that hangs must not eat the memory.
QUEUE_MAX = 10_000
#: No more reads are taken while so many requests wait: a write without room ends the node. Threat: a member whose
#: questions fill the queue.
READS_WAITING_MAX = 5_000
#: A blob that was put so recently is not dropped: somebody may be about to name it.
FRESH_S = 600.0
FRESH_MAX = 10_000
#: A crash loses no more than this of the year after which a node counts as away.
NOTE_EVERY_S = 3600.0
#: Without a setting journal and blobs may take this share of the disk, between these bounds.
DISK_SHARE, DISK_BYTES_MIN, DISK_BYTES_MAX = 0.1, 1 << 30, 10 << 30
#: That something can not be read, for the same reason, is logged again after this, seconds.
LOG_AGAIN_S = 60.0
#: What still waits at the end gets so long, seconds. Threat: a disk that hangs keeps the node from ending.
CLOSE_WITHIN_S = 10.0

T = TypeVar("T")


class _Kind(Enum):
    WRITE = "write"  # where it fails, the node can not keep its word
    BLOB = "blob"  # may be refused for want of room
    READ = "read"


class _Job(NamedTuple):
    work: Callable[[], object]
    future: "asyncio.Future[object]"  # who waits for it
    kind: _Kind


class _Broke(Exception):
    """This job failed by itself; nothing of its transaction was kept."""

    def __init__(self, job: _Job) -> None:
        self.job = job


class Store:
    """Every method but `open` and `close` is awaited on the event loop and runs in the store's thread."""

    def __init__(self, path: Path, on_fatal: Callable[[str], None], budget_bytes: int = 0) -> None:
        """`budget_bytes`: blobs are refused once the file has grown to it; 0: no limit but the disk's."""
        self._path = path
        self.budget_bytes = budget_bytes
        self._on_fatal = on_fatal
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: set[asyncio.Future[object]] = set()
        self._closed = False
        self._failed: KithError | None = None  # why a write was not done; none is from then on
        self._thread = threading.Thread(target=self._run, name="kith-store", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: apsw.Connection | None = None
        self._in_place: InPlace | None = None
        self._rows = FactRows()
        self.facts_read = 0  # at the start
        self._noted_seen_ms = 0
        self._fresh: dict[bytes, float] = {}  # blobs put of late, and when
        self._once = Once(LOG_AGAIN_S)

    def open(self, node_id: NodeId) -> tuple[Iterator[Fact], int, str]:
        """Open or create the file. Returns all facts in the order they were stored, the term and the vote.

        The facts are read as they are iterated, after this and before anything else, inside `restoring`.
        Raises `KithError`: not writable, damaged, of another node, of a newer version.
        """
        try:
            make_private(self._path)
            self._connection = apsw.Connection(str(self._path))
            self._in_place = InPlace(self._path)
            schema.prepare(self._connection, self._path, node_id)
            self._rows.db = self._connection
            self.retired = self._rows.all_retired()
            self.forks = self._rows.all_forks()
            rows = self._db.execute("SELECT der FROM certificates").fetchall()
            self.certificates: list[bytes] = [bytes(row[0]) for row in rows]  # type: ignore[arg-type]
        except (apsw.Error, FactError, OSError) as error:
            raise self.unusable(error) from error
        term = int(self._meta("term") or 0)
        voted_for = self._meta("voted_for") or ""
        self._noted_seen_ms = int(self._meta("last_seen_ms") or 0)
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self._facts(), term, voted_for

    def unusable(self, reason: Exception) -> KithError:
        """What is read can not be what was written, or there is no room to begin."""
        if no_room(reason):
            return full_at_start(self._path)
        return KithError(
            "journal-unusable",
            f"the journal {self._path} can not be used: {reason}",
            "Check the disk and the folder's permissions; or move the file away: the node then starts empty and "
            "gets the facts back from its peers.",
            ExitCode.CANNOT_START,
        )

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Around `open` and all reading at the start: what is not as it was written is told as `KithError`."""
        try:
            with without_collecting():
                yield
        except (apsw.Error, ValueError) as error:
            raise self.unusable(error) from error

    def _facts(self) -> Iterator[Fact]:
        """Raises `FactError`. A changed fact is not the one that the next of its stream names (journal.py); the last
        of a stream has no next one, so its signature is checked: about 80 µs a stream."""
        last: dict[StreamId, Fact] = {}
        for fact in self._rows.all_facts():
            last[fact.stream_id] = fact
            self.facts_read += 1
            yield fact
        for fact in last.values():
            if not fact.is_signed_by_author():
                raise FactError(f"fact {fact.sequence} of {fact.author} is not what its author signed")

    async def close(self) -> None:
        """Finish what waits within `CLOSE_WITHIN_S`, and close; else who still waits is told that it was in vain."""
        self._closed = True
        if self._thread.is_alive():
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join, CLOSE_WITHIN_S)
        if self._thread.is_alive():
            # Its connection is in use; SQLite brings the file in order when it is opened again.
            log("error", f"the disk did not finish in {CLOSE_WITHIN_S:g} s: {len(self._waiting)} requests are given up")
            for future in list(self._waiting):
                self._settle(future, _slow())
        elif self._connection is not None:
            self._connection.close()

    async def append(self, facts: Sequence[Fact], retired: Sequence[Retired] = ()) -> None:
        """Store facts durably, in this order, and what stands in place of those that are gone."""
        await self._do(lambda: self._rows.append(facts, retired))

    async def retire(self, ranges: Sequence[FactRange]) -> None:
        """Forget the content of these facts, durably; their places and the hash of the last one stay."""
        await self._do(lambda: self._rows.retire(ranges))
        await self._do(self._shrink)

    async def save_fork(self, fork: Fork) -> list[Fact]:
        """Store the proof durably, delete the stream from its place on, and read all facts."""

        def save() -> list[Fact]:
            self._rows.save_fork(fork)
            return list(self._rows.all_facts())

        return await self._do(save)

    async def save_proof(self, fork: Fork) -> None:
        """Store durably the proof of a fork that comes after all that is stored of its stream."""
        await self._do(lambda: self._rows.save_fork(fork))

    async def cut_streams(self, ends: Sequence[tuple[StreamId, Position]]) -> list[Fact]:
        """Delete each stream durably after its place, which may be 0, and read all facts."""

        def cut() -> list[Fact]:
            for stream_id, end in ends:
                self._rows.cut(stream_id, end)
            return list(self._rows.all_facts())

        return await self._do(cut)

    async def stored_beside(self, facts: Sequence[Fact]) -> list[Fact]:
        """What is stored in and beside the places of these facts: `journal.places_beside`."""
        return await self._do(lambda: self._rows.beside(facts), _Kind.READ)

    async def save_certificates(self, identities: Sequence[Identity]) -> None:
        """Keep the certificates of authors, durably; each in place of an earlier one of the same node and role."""
        rows = [(one.node_id, one.role.value, one.certificate) for one in identities]
        sql = "INSERT OR REPLACE INTO certificates VALUES (?, ?, ?)"
        await self._do(lambda: self._db.executemany(sql, rows).fetchall())

    async def save_vote(self, term: int, voted_for: str) -> None:
        """Store term and vote durably."""
        rows = [("term", str(term)), ("voted_for", voted_for)]
        await self._do(lambda: self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows))

    async def read_ranges(self, ranges: Sequence[FactRange]) -> list[facts_pb2.SignedFact]:
        """Facts of the ranges, in stream order, at most `fact_rows.PUSH_BYTES_MAX`; the rest is asked for again.

        A retired range comes only before the fact after it.
        """
        return await self._do(lambda: list(self._rows.read(ranges)), _Kind.READ)

    async def put_blob(self, content: bytes) -> bytes:
        """Store a blob durably. Returns its SHA-256. Raises `KithError` (`disk-full`)."""
        sha256 = hashlib.sha256(content).digest()

        def put() -> bytes:
            now = time.monotonic()
            self._fresh.pop(sha256, None)
            self._fresh[sha256] = now
            while len(self._fresh) > FRESH_MAX or next(iter(self._fresh.values())) < now - FRESH_S:
                del self._fresh[next(iter(self._fresh))]
            if self._db.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (sha256,)).fetchall():
                return sha256
            if self.budget_bytes and self._size() + len(content) > self.budget_bytes:
                raise disk_full(f"the disk budget of {self.budget_bytes >> 20} MiB is used up")
            self._db.execute("INSERT INTO blobs VALUES (?, ?)", (sha256, content)).fetchall()
            return sha256

        return await self._do(put, _Kind.BLOB)

    async def drop_blobs(self, sha256: Sequence[bytes]) -> None:
        """Delete blobs, but for those put in the last minutes."""

        def drop() -> None:
            since = time.monotonic() - FRESH_S
            rows = [(name,) for name in sha256 if self._fresh.get(name, since) <= since]
            self._db.executemany("DELETE FROM blobs WHERE sha256 = ?", rows).fetchall()

        await self._do(drop)
        await self._do(self._shrink)

    def blob_refs(self) -> list[common_pb2.BlobRef]:
        """The blobs that are held; after `open` and before anything else."""
        rows = self._db.execute("SELECT sha256, length(content) FROM blobs ORDER BY sha256")
        return [common_pb2.BlobRef(sha256=name, size_bytes=size) for name, size in rows]

    async def size_bytes(self) -> int:
        """What the facts and blobs take on the disk."""
        return await self._do(self._size, _Kind.READ)

    async def note_seen(self, wall_clock_ms: int) -> None:
        """Remember that the node was here, at most once in `NOTE_EVERY_S`: one that was away for a year starts empty
        (node/away.py). Only the latest counts: a start with the clock in the past must not make it long ago."""
        if wall_clock_ms - self._noted_seen_ms < NOTE_EVERY_S * 1000:
            return
        self._noted_seen_ms = wall_clock_ms
        row = ("last_seen_ms", str(wall_clock_ms))
        await self._do(lambda: self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row).fetchall())

    async def get_blob(self, sha256: bytes) -> bytes | None:
        def read() -> bytes | None:
            rows = self._db.execute("SELECT content FROM blobs WHERE sha256 = ?", (sha256,)).fetchall()
            return bytes(rows[0][0]) if rows else None  # type: ignore[arg-type]

        return await self._do(read, _Kind.READ)

    async def blob_bytes(self, sha256: bytes) -> int | None:
        """Its size, without reading it; None where it is not held."""

        def look() -> int | None:
            rows = self._db.execute("SELECT length(content) FROM blobs WHERE sha256 = ?", (sha256,)).fetchall()
            return int(rows[0][0]) if rows else None  # type: ignore[arg-type]

        return await self._do(look, _Kind.READ)

    async def has_blob(self, sha256: bytes) -> bool:
        return await self._do(
            lambda: bool(self._db.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (sha256,)).fetchall()), _Kind.READ
        )

    async def _do(self, work: Callable[[], T], kind: _Kind = _Kind.WRITE) -> T:
        assert self._loop is not None
        if self._closed:
            raise KithError("node-stops", "the journal is closed", "Start the node again.", ExitCode.UNAVAILABLE)
        if kind is _Kind.WRITE and self._failed is not None:
            raise self._failed
        if self._jobs.qsize() >= (QUEUE_MAX if kind is _Kind.WRITE else READS_WAITING_MAX):
            if kind is _Kind.WRITE:
                self._failed = _slow()
                self._on_fatal(self._failed.message)
            raise _slow()
        future: asyncio.Future[object] = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._jobs.put(_Job(work, future, kind))
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
        """Do all of it and tell everybody how it went. Raises nothing: the thread has others to serve."""
        try:
            while batch := self._still_possible(batch):
                try:
                    results = self._write(batch)
                except apsw.FullError:
                    if not any(job.kind is _Kind.BLOB for job in batch):
                        raise
                    # What may not be refused is tried again without the blobs beside it.
                    for job in batch:
                        if job.kind is _Kind.BLOB:
                            self._answer(job, disk_full("the disk is full"))
                    batch = [job for job in batch if job.kind is not _Kind.BLOB]
                except _Broke as broke:
                    self._broke(broke)
                    batch = [job for job in batch if job is not broke.job]
                else:
                    for job, result in zip(batch, results, strict=True):
                        self._answer(job, result)
                    return
        except Exception as error:
            problem = (
                error
                if isinstance(error, KithError)
                else KithError(
                    "disk-failed",
                    f"the journal could not be written ({_short(error)}); what was promised before is safe",
                    "Make room or mend the disk, then start the node again.",
                    ExitCode.FAILED,
                )
            )
            self._failed = problem
            # First the node learns that it has to end, then those who wait that they waited in vain.
            self._on_loop(self._on_fatal, problem.message)
            for job in batch:
                self._answer(job, problem)

    def _still_possible(self, batch: list[_Job]) -> list[_Job]:
        """Without the writes, where one before them was not done: who waits for them is told."""
        if (failed := self._failed) is None:
            return batch
        for job in batch:
            if job.kind is _Kind.WRITE:
                self._answer(job, failed)
        return [job for job in batch if job.kind is not _Kind.WRITE]

    def _broke(self, broke: _Broke) -> None:
        error = broke.__cause__ or broke
        if isinstance(error, apsw.Error):
            code, what = "disk-failed", "could not be read"
            remedy = "Check the disk; try again."
        else:
            code, what = "journal-broke", "failed inside"
            remedy = "Please report it; the node's log says more."
        problem = KithError(code, f"the journal {what} ({_short(error)})", remedy, ExitCode.FAILED)
        if broke.job.kind is not _Kind.READ or self._once.due(problem.message):  # whoever asks must not fill the log
            log("error", problem.message)
        if broke.job.kind is _Kind.WRITE:
            self._failed = problem
            self._on_loop(self._on_fatal, problem.message)
        self._answer(broke.job, problem)

    def _write(self, batch: list[_Job]) -> list[object]:
        """Raises `apsw.Error` of what is written, `_Broke`, `KithError` (`journal-gone`); nothing is written then."""
        assert self._in_place is not None
        self._in_place.check()
        results: list[object] = []
        self._db.execute("BEGIN IMMEDIATE").fetchall()
        try:
            for job in batch:
                if job.kind is _Kind.READ and job.future.cancelled():  # nobody waits for it any more
                    results.append(None)
                    continue
                try:
                    results.append(job.work())
                except KithError as refused:
                    results.append(refused)
                except Exception as error:
                    if isinstance(error, apsw.Error) and job.kind is not _Kind.READ:
                        raise
                    raise _Broke(job) from error
            self._db.execute("COMMIT").fetchall()
        except BaseException:
            if self._db.in_transaction:  # SQLite ends the transaction by itself where there is no room
                self._db.execute("ROLLBACK").fetchall()
            raise
        return results

    def _answer(self, job: _Job, result: object) -> None:
        self._on_loop(self._settle, job.future, result)

    def _settle(self, future: "asyncio.Future[object]", result: object) -> None:
        if future.done():  # nobody waits any more
            return
        if isinstance(result, KithError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits there
            self._loop.call_soon_threadsafe(call, *arguments)

    def _size(self) -> int:
        pages, free, page_bytes = (
            int(str(self._db.execute(f"PRAGMA {name}").fetchall()[0][0]))
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * page_bytes

    def _shrink(self) -> None:
        """Give pages that are free back to the disk."""
        self._db.execute("PRAGMA incremental_vacuum").fetchall()

    def _meta(self, key: str) -> str | None:
        rows = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchall()
        return str(rows[0][0]) if rows else None


def _short(error: BaseException) -> str:
    """SQLite's own words; of other errors the place alone, which quotes nothing."""
    return f"{type(error).__name__}: {error}" if isinstance(error, apsw.Error) else where(error)


def _slow() -> KithError:
    return KithError("disk-slow", "the disk does not keep up", "Check the disk; try again later.")


def disk_full(reason: str) -> KithError:
    return KithError(
        "disk-full",
        f"{reason}: the content is not stored here",
        "Make room, raise --disk-budget, or use another node.",
        ExitCode.FAILED,
    )


def disk_budget_bytes(config: NodeConfig) -> int:
    """What journal and blobs may take."""
    if config.disk_budget_mb:
        return config.disk_budget_mb << 20
    share = int(shutil.disk_usage(config.data_dir).total * DISK_SHARE)
    return min(DISK_BYTES_MAX, max(DISK_BYTES_MIN, share))
