"""The journal as a file: of this user alone, in its place as long as the node runs, and said to be full where it is.

Idea: SQLite writes on into a file that was deleted or moved, and says that all is well. What is durable there is in no
place where the next start looks. So the file at the path has to be the one that was opened, whenever something is
promised.

Does not: read or write the file (store.py), or look through the folders above it.
"""

import contextlib
import errno
import os
from pathlib import Path

import apsw

from node.errors import ExitCode, KithError
from node.files import is_there

#: SQLite makes the last two beside the first, with its mode.
_PARTS = ("", "-wal", "-shm")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def make_private(path: Path) -> None:
    """Documents and answers lie in it in clear: 0600, also what an earlier release left otherwise. Raises `OSError`.

    Before SQLite opens it: its locks end when this process closes the file."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for part in _PARTS:
        with contextlib.suppress(OSError):  # there is none, or the file system knows no modes
            os.chmod(f"{path}{part}", 0o600)


class InPlace:
    """Remembers the file at `path`. Raises `OSError` where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = path.stat()

    def check(self) -> None:
        """Raises `KithError` (`journal-gone`)."""
        if is_there(self._path, self._opened):
            return
        raise KithError(
            "journal-gone",
            f"the journal {self._path} was deleted, moved or replaced while the node ran",
            "Put its folder back, or start the node again: it then starts empty.",
        )


def no_room(error: BaseException) -> bool:
    """Whether a full disk is behind it; a library may have raised it while it handled that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, apsw.FullError) or (isinstance(cause, OSError) and cause.errno in _NO_ROOM):
            return True
        if getattr(cause, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:  # where the -shm file finds none
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def full_at_start(path: Path) -> KithError:
    return KithError(
        "disk-full",
        f"the disk is full: the journal {path} can not be opened",
        "Make room, then start the node again; nothing is lost.",
        ExitCode.CANNOT_START,
    )
