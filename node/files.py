"""Writing a file so that it is there whole or not at all, and there after a power cut."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file with this content, synced to disk. Raises `OSError`."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    write_synced(draft, content, mode)
    draft.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that nobody reads yet. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # one that was there kept its own mode
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, 0600 where the file system knows modes. Raises `OSError`; then there is none.

    Raises `FileExistsError` where there is one; it is not touched.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make what was renamed in `folder` last. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_there(path: Path, opened: os.stat_result) -> bool:
    """Whether an open file still has this name. A disk that does not answer is no file that is gone."""
    try:
        return os.path.samestat(path.stat(), opened)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
