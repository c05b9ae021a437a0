"""A node that was away for a year starts empty, with its open jobs saved to a file.

Why: after a year the mesh has forgotten how jobs ended (mesh/retention.py). A node that still holds the beginnings of
such jobs would bring them back as open ones, and they would be done again.

Idea: the store notes now and then when the node was last here. If that is more than a year before now, the journal is
moved aside, never deleted: a clock that is wrong costs nothing that can not be moved back.

Does not: judge which of the open jobs still matter; a person does. Nor notice the absence of a node whose clock was far
ahead when it was last here.
"""

import contextlib
import datetime
import json
from pathlib import Path

import apsw

from mesh.facts import Fact, FactError
from mesh.ledger import Ledger
from mesh.retention import ENDS_KEEP_S
from node.fact_rows import FactRows
from node.files import write_atomically


def set_aside(journal: Path, wall_clock_s: float) -> str:
    """Move a journal aside that was last written to over a year ago. Returns what was done, in words; else ''.

    A journal that can not be read is left to `Store.open`, which says what to do. Raises `OSError`.
    """
    if not journal.exists():
        return ""
    try:
        facts = _facts_if_old(journal, wall_clock_s)
    except (apsw.Error, FactError, ValueError):
        return ""
    if facts is None:
        return ""
    stamp = datetime.datetime.fromtimestamp(wall_clock_s, datetime.UTC).strftime("%Y%m%d-%H%M%S")
    aside = journal.with_name(f"{journal.name}.away-{stamp}")
    exported = journal.with_name(f"open-jobs-{stamp}.jsonl")
    open_jobs = _write_open_jobs(facts, exported)
    for suffix in ("-wal", "-shm", ""):  # the file itself last: until then the next start begins again
        part = journal.with_name(journal.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    jobs = f"; {open_jobs} open jobs are listed in {exported.name}" if open_jobs else ""
    return f"this node was away for over a year: it starts empty, its journal is now {aside.name}{jobs}"


def export_open_jobs(journal: Path, into: Path) -> int:
    """List the open jobs of a journal that is about to be set aside; how many, and no file where there are none.

    None of a journal that is missing or can not be read. Raises `OSError`.
    """
    if not journal.exists():
        return 0
    try:
        return _write_open_jobs(_facts_of(journal), into)
    except (apsw.Error, FactError, ValueError):
        return 0


def _write_open_jobs(facts: list[Fact], into: Path) -> int:
    ledger = Ledger()
    for fact in facts:
        ledger.apply(fact)
    rows = []
    for job in ledger.open_jobs():
        assert job.submitted is not None
        said, submitted = job.submitted
        rows.append(
            {
                "job_id": job.job_id.hex(),
                "submitted_ms": said.time_ms,
                "accepted_by": said.author,
                "request": str(submitted.request),
                "blobs": [ref.sha256.hex() for ref in submitted.blobs],
            }
        )
    if rows:
        write_atomically(into, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return len(rows)


def _facts_if_old(journal: Path, wall_clock_s: float) -> list[Fact] | None:
    """The facts of a journal that is too old; None where it is not, or where nobody knows how old it is."""
    with contextlib.closing(apsw.Connection(str(journal))) as db:
        rows = db.execute("SELECT value FROM meta WHERE key = 'last_seen_ms'").fetchall()
        if not rows or wall_clock_s - int(str(rows[0][0])) / 1000 <= ENDS_KEEP_S:
            return None
        return _facts_in(db)


def _facts_of(journal: Path) -> list[Fact]:
    with contextlib.closing(apsw.Connection(str(journal))) as db:
        return _facts_in(db)


def _facts_in(db: apsw.Connection) -> list[Fact]:
    stored = FactRows()
    stored.db = db
    return list(stored.all_facts())
