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


def sync_folder(folder: Path) -> None:
    """Make what was renamed in `folder` last. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
