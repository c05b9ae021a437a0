"""Files that a node runs from: held, and hashed once."""

import os
from pathlib import Path

import pytest

from node.models import serving as serving_module
from node.models.local import pull_file
from node.models.serving import Serving, known_sha256
from node.models.store import ModelStore, file_sha256, in_use
from tests.node.engine.gguf_files import sample, write_parts
from tests.node.models.gguf_files import write_gguf


def test_file_is_held_until_the_node_ends(tmp_path: Path) -> None:
    write_gguf(tmp_path / "Own.gguf", "Own")
    serving = Serving(ModelStore(tmp_path / "models"))
    assert serving.sha256_of(tmp_path / "Own.gguf") == b""
    entry = serving.use(tmp_path / "Own.gguf")
    assert in_use(tmp_path / "Own.gguf")
    assert entry.manifest.model == "Own"
    assert serving.sha256_of(tmp_path / "Own.gguf").hex() == file_sha256(tmp_path / "Own.gguf")
    assert serving.entries == [entry]
    serving.close()
    assert not in_use(tmp_path / "Own.gguf")


def test_hash_is_computed_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "Own.gguf", tmp_path / "models"
    write_gguf(path)
    read: list[Path] = []

    def reading(which: Path) -> str:
        read.append(which)
        return file_sha256(which)

    monkeypatch.setattr(serving_module, "file_sha256", reading)
    assert known_sha256(path, folder) == known_sha256(path, folder) == file_sha256(path)
    assert len(read) == 1
    write_gguf(path, fill=b"x")
    os.utime(path, ns=(1, 1))
    assert known_sha256(path, folder) == file_sha256(path)
    assert len(read) == 2
    (folder / ".hashes.json").write_text("{broken")
    assert known_sha256(path, folder) == file_sha256(path)


def test_file_of_the_store_has_its_hash_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path / "models")
    write_gguf(tmp_path / "Own.gguf")
    entry = pull_file(tmp_path / "Own.gguf", store)
    monkeypatch.setattr(serving_module, "file_sha256", None)
    serving = Serving(store)
    assert serving.use(entry.path) == entry
    serving.close()


def test_the_first_file_of_several_is_described_as_what_it_is(tmp_path: Path) -> None:
    first, _ = write_parts(sample(), tmp_path, 2)
    serving = Serving(ModelStore(tmp_path / "models"))
    manifest = serving.use(first).manifest
    serving.close()
    assert (manifest.size_bytes, manifest.sha256) == (first.stat().st_size, file_sha256(first))
