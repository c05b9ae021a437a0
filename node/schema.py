"""The form of the journal file: made when new, brought up to date when old, refused when newer or of another node.

Idea: `PRAGMA user_version` counts the forms. A migration is one transaction, so a file is of one form or of the next.

Does not: read facts (fact_rows.py).
"""

from pathlib import Path

import apsw

from mesh.identity import NodeId
from node.errors import ExitCode, KithError

SCHEMA_VERSION = 3

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (
    id INTEGER PRIMARY KEY,
    author TEXT NOT NULL, incarnation TEXT NOT NULL, stream INTEGER NOT NULL, sequence INTEGER NOT NULL,
    body BLOB NOT NULL, signature BLOB NOT NULL,
    UNIQUE (author, incarnation, stream, sequence)
);
CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
"""
#: Facts that retention dropped, one row a run of them; and proofs of forked streams.
_FROM_1_TO_2 = """
CREATE TABLE retired (
    author TEXT NOT NULL, incarnation TEXT NOT NULL, stream INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, head BLOB NOT NULL,
    PRIMARY KEY (author, incarnation, stream, first)
) WITHOUT ROWID;
CREATE TABLE forks (
    author TEXT NOT NULL, incarnation TEXT NOT NULL, stream INTEGER NOT NULL, sequence INTEGER NOT NULL,
    one_body BLOB NOT NULL, one_signature BLOB NOT NULL, other_body BLOB NOT NULL, other_signature BLOB NOT NULL,
    PRIMARY KEY (author, incarnation, stream)
) WITHOUT ROWID;
"""
#: One certificate of an author and role: its facts count by it, whenever it ended.
_FROM_2_TO_3 = """
CREATE TABLE certificates (node_id TEXT NOT NULL, role TEXT NOT NULL, der BLOB NOT NULL, PRIMARY KEY (node_id, role))
    WITHOUT ROWID;
"""


def prepare(db: apsw.Connection, path: Path, node_id: NodeId) -> None:
    """Raises `KithError`: of a newer version, of another node; `apsw.Error`: damaged, not writable."""
    db.set_busy_timeout(2000)
    version = int(db.execute("PRAGMA user_version").fetchall()[0][0])  # type: ignore[arg-type]
    if version > SCHEMA_VERSION:
        raise KithError(
            "journal-newer",
            f"the journal {path} was written by a newer kithmesh (schema {version})",
            "Start the newer version, or another --data-dir.",
            ExitCode.CANNOT_START,
        )
    if version == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA synchronous = FULL").fetchall()
    db.execute("PRAGMA cache_size = -4096").fetchall()
    with db:
        if version == 0:
            db.execute(_VERSION_1)
            db.execute("INSERT INTO meta VALUES ('node_id', ?)", (node_id,))
        if version < 2:
            db.execute(_FROM_1_TO_2)
        if version < 3:
            db.execute(_FROM_2_TO_3)
        if version < SCHEMA_VERSION:
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    owner = db.execute("SELECT value FROM meta WHERE key = 'node_id'").fetchall()[0][0]
    if owner != node_id:
        raise KithError(
            "journal-of-another-node",
            f"the journal {path} belongs to node {owner}, and this node is {node_id}",
            "Put back the node.key that belongs to it, or use another --data-dir.",
            ExitCode.CANNOT_START,
        )
    _let_it_shrink(db)


def _let_it_shrink(db: apsw.Connection) -> None:
    """A file of the first release can not give pages back to the disk until it is written anew, once."""
    if db.execute("PRAGMA auto_vacuum").fetchall()[0][0] == 2:
        return
    db.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
    try:
        # In WAL mode the setting is not taken over: the file leaves it for a moment.
        db.execute("PRAGMA journal_mode = DELETE").fetchall()
        db.execute("VACUUM").fetchall()
    except (apsw.FullError, apsw.BusyError):
        pass  # no room for a second copy: the file stays as it is, and its free pages are used again
    finally:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
