"""What is written where a model is meant."""

from pathlib import Path

import pytest

from node.errors import ExitCode, KithError
from node.models.default import DEFAULT_FILE
from node.models.local import pull_file
from node.models.source import HubSource, PeerSource, parse, resolve_model
from node.models.store import ModelStore
from tests.node.models.gguf_files import write_gguf

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://a/b/c.gguf", HubSource("a/b", "c.gguf")),
        ("hf://a/b/sub/c.gguf@v1.0", HubSource("a/b", "sub/c.gguf", "v1.0")),
        ("peer:anna/Tiny", PeerSource("anna", "Tiny")),
        (f"peer:anna/{HASH}", PeerSource("anna", sha256=HASH)),
        (f"sha256:{HASH.upper()}", PeerSource(sha256=HASH)),
        (HASH, PeerSource(sha256=HASH)),
        ("some/file.gguf", Path("some/file.gguf")),
    ],
)
def test_sources(text: str, source: object) -> None:
    assert parse(text) == source


@pytest.mark.parametrize(
    "text",
    ["hf://a/b", "hf://a/b/c.bin", "hf://a/../c.gguf", "hf://a/b/../../c.gguf", "peer:anna", "peer:/x", "sha256:12",
     "hf://a/b/c-00001-of-00002.gguf", "hf://a/b/c.gguf@"],
)  # fmt: skip
def test_what_can_not_be_meant_is_refused(text: str) -> None:
    with pytest.raises(KithError) as caught:
        parse(text)
    assert caught.value.code == "bad-model"
    assert caught.value.remedy


def test_path_that_was_given_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(KithError, match="there is no model file") as caught:
        resolve_model(str(tmp_path / "none.gguf"))
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    with pytest.raises(KithError, match="is a folder"):
        resolve_model(str(tmp_path))
    (tmp_path / "some.gguf").write_bytes(b"x")
    assert resolve_model(str(tmp_path / "some.gguf")) == tmp_path / "some.gguf"


def test_a_file_whose_name_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~old.gguf").write_bytes(b"GGUF")
    assert parse("~old.gguf") == resolve_model("~old.gguf", ModelStore(tmp_path / "store")) == Path("~old.gguf")


def test_no_path_means_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    assert resolve_model("") == tmp_path / DEFAULT_FILE


def test_name_in_the_store_is_found_and_a_near_one_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    write_gguf(tmp_path / "Tiny-F32.gguf")
    entry = pull_file(tmp_path / "Tiny-F32.gguf", store)
    assert resolve_model("Tiny-F32", store) == resolve_model("Tiny-F32.gguf", store) == entry.path
    assert resolve_model("Tiny", store) == entry.path  # as the model calls itself
    with pytest.raises(KithError, match="nor a model of that name") as caught:
        resolve_model("Tiny-F23", store)
    assert "Tiny-F32" in caught.value.remedy
    with pytest.raises(KithError, match="was not pulled yet"):
        resolve_model("hf://a/b/c.gguf", store)
