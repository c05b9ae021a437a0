"""A file of the user's own: linked or copied, never half taken."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import KithError
from node.models import default
from node.models.local import pull_file
from node.models.store import ModelStore
from tests.node.models.gguf_files import write_gguf


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)


def test_file_on_another_disk_is_copied(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    content = write_gguf(tmp_path / "Own.gguf")
    told: list[tuple[int, int]] = []
    entry = pull_file(tmp_path / "Own.gguf", store, "Mine.gguf", lambda done, size: told.append((done, size)))
    assert entry.name == "Mine.gguf"
    assert entry.path.read_bytes() == content
    assert not os.path.samefile(entry.path, tmp_path / "Own.gguf")
    assert told == [(len(content), len(content))]


def test_interrupted_copy_leaves_nothing(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    write_gguf(tmp_path / "Own.gguf")

    def interrupt(_done: int, _size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_file(tmp_path / "Own.gguf", store, progress=interrupt)
    assert store.entries() == []
    assert list((store.folder / ".unfinished").iterdir()) == []


def test_what_a_killed_copy_left_is_known_and_can_be_removed(store: ModelStore, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "Own.gguf", elements=4096)
    script = f"""
import errno, os, signal
from pathlib import Path
from node.models import default
from node.models.local import pull_file
from node.models.store import ModelStore

def refuse(*arguments):
    raise OSError(errno.EXDEV, "another disk")

os.link = refuse
kill = lambda done, size: os.kill(os.getpid(), signal.SIGKILL)
pull_file(Path({str(tmp_path / "Own.gguf")!r}), ModelStore(Path({str(store.folder)!r})), progress=kill)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False).returncode
    assert ended == -signal.SIGKILL
    assert store.entries() == []
    # What the process had not written out is lost with it.
    [(_, size)] = store.unfinished()
    assert 0 < size <= len(content)
    assert store.drop_unfinished() == size
    assert list((store.folder / ".unfinished").iterdir()) == []


def test_a_copy_under_way_is_not_removed(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    content = write_gguf(tmp_path / "Own.gguf")
    freed: list[int] = []
    entry = pull_file(tmp_path / "Own.gguf", store, progress=lambda _done, _size: freed.append(store.drop_unfinished()))
    assert entry.path.read_bytes() == content
    assert freed == [0]


def test_file_that_is_no_model_is_refused_before_it_is_copied(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "Own.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(KithError) as caught:
        pull_file(tmp_path / "Own.gguf", store)
    assert caught.value.code == "bad-model"
    assert not store.folder.exists()


def test_file_in_the_store_gets_its_manifest(store: ModelStore) -> None:
    content = write_gguf(store.folder / "Own.gguf")
    assert not store.entries()[0].manifest.sha256
    entry = pull_file(store.folder / "Own.gguf", store)
    assert entry.path.read_bytes() == content
    assert store.entries() == [entry]
    assert pull_file(store.folder / "Own.gguf", store).manifest.sha256 == entry.manifest.sha256
    assert entry.path.exists()


def test_the_default_models_file_is_the_default_model_whatever_it_is_called(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a machine without a network has it by a file that somebody carried there, and nothing is fetched twice."""
    content = write_gguf(tmp_path / "smollm-from-a-stick.gguf")
    monkeypatch.setattr(default, "DEFAULT_SHA256", hashlib.sha256(content).hexdigest())
    assert pull_file(tmp_path / "smollm-from-a-stick.gguf", store).name == default.DEFAULT_FILE
    assert pull_file(tmp_path / "smollm-from-a-stick.gguf", store, "own.gguf").name == "own.gguf", (
        "who names it means it"
    )
