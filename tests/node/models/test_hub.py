"""The real library against a small Hub on loopback: pinned, resumed, refused, and told in our words."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors
import pytest
from huggingface_hub import close_session

from node.errors import ExitCode, KithError
from node.models import hub as hub_module
from node.models.source import HubSource, resolve_model
from node.models.store import ModelStore
from tests.node.models.gguf_files import gguf_bytes
from tests.node.models.hub_server import COMMIT, REPO, Hub, serving

CONTENT = gguf_bytes("Tiny", elements=200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = "Tiny-F32.gguf"
SOURCE = HubSource(REPO, FILE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving({FILE: CONTENT, "README.md": b"x", "other/Other-Q4_0.gguf": b"y"}) as found:
        # The library reads HF_ENDPOINT once, when it is imported; every part of it reads this.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 64 << 10)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found
        close_session()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_file_is_pinned_to_commit_and_hash(hub: Hub, store: ModelStore) -> None:
    told: list[tuple[int, int]] = []
    entry = hub_module.pull(SOURCE, store, progress=lambda done, size: told.append((done, size)))
    assert entry.path.read_bytes() == CONTENT
    manifest = entry.manifest
    assert (manifest.sha256, manifest.revision, manifest.licence) == (SHA256, COMMIT, "apache-2.0")
    assert manifest.source == f"hf://{REPO}/{FILE}"
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert store.unfinished() == []
    assert resolve_model(f"hf://{REPO}/{FILE}", store) == entry.path
    assert resolve_model(f"hf://{REPO}/{FILE}@{COMMIT}", store) == entry.path
    hub.ranges.clear()
    assert hub_module.pull(SOURCE, store) == entry
    assert hub.ranges == []  # it was here


def test_later_pull_goes_on_where_the_first_was_interrupted(hub: Hub, store: ModelStore) -> None:
    class Stop(Exception): ...

    def stop(done: int, _size: int) -> None:
        if done > 400_000:
            raise Stop

    with pytest.raises(Stop):
        hub_module.pull(SOURCE, store, progress=stop)
    [(_, size)] = store.unfinished()
    assert 0 < size < len(CONTENT)
    assert store.entries() == []
    entry = hub_module.pull(SOURCE, store)
    assert hub.ranges == ["", f"bytes={size}-"]
    assert entry.path.read_bytes() == CONTENT


def test_connection_that_breaks_is_taken_up_again(hub: Hub, store: ModelStore) -> None:
    hub.break_after = 400_000
    entry = hub_module.pull(SOURCE, store)
    assert entry.path.read_bytes() == CONTENT
    assert len(hub.ranges) == 2
    assert hub.ranges[1].startswith("bytes=")


def test_file_that_is_too_large_for_one_request_says_how_to_get_it(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "MAX_HTTP_DOWNLOAD_SIZE", len(CONTENT) - 1)
    with pytest.raises(KithError, match="too large") as caught:
        hub_module.pull(SOURCE, store)
    assert f"hf download {REPO} {FILE}" in caught.value.remedy
    assert hub.ranges == []
    assert store.unfinished() == []


def test_damaged_part_is_thrown_away(hub: Hub, store: ModelStore) -> None:
    with store.part(SHA256, len(CONTENT)) as file:
        file.write(b"not its beginning")
    with pytest.raises(KithError, match="thrown away"):
        hub_module.pull(SOURCE, store)
    assert store.unfinished() == []
    assert store.entries() == []
    assert hub_module.pull(SOURCE, store).manifest.sha256 == SHA256


def test_other_hash_than_the_repository_says_is_refused(hub: Hub, store: ModelStore) -> None:
    hub.lie_sha256 = "a" * 64
    with pytest.raises(KithError, match="SHA-256"):
        hub_module.pull(SOURCE, store)
    assert store.entries() == []
    hub.lie_sha256 = ""
    with pytest.raises(KithError, match=r"not b{64}"):
        hub_module.pull(SOURCE, store, sha256="b" * 64)


def test_what_is_not_there_is_said(hub: Hub, store: ModelStore) -> None:
    with pytest.raises(KithError, match="no file Big") as caught:
        hub_module.pull(HubSource(REPO, "Big.gguf"), store)
    assert FILE in caught.value.remedy
    assert "README" not in caught.value.remedy
    with pytest.raises(KithError, match="no revision v9"):
        hub_module.pull(HubSource(REPO, FILE, "v9"), store)
    with pytest.raises(KithError, match="no repository") as caught:
        hub_module.pull(HubSource("someone/Else-GGUF", FILE), store)
    assert caught.value.exit_code == ExitCode.NOT_FOUND


def test_gated_repository_says_where_to_accept(hub: Hub, store: ModelStore) -> None:
    hub.gated = True
    with pytest.raises(KithError, match="accept terms") as caught:
        hub_module.pull(SOURCE, store)
    assert caught.value.code == "model-gated"
    assert "HF_TOKEN" in caught.value.remedy


def test_token_of_the_user_is_sent(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub_module.pull(SOURCE, store)
    assert set(hub.tokens) == {"Bearer hf_mine"}


def test_without_network_the_other_ways_are_named(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(KithError, match="can not be reached") as caught:
        hub_module.pull(SOURCE, store)
    assert "kith model pull FILE" in caught.value.remedy
    assert "peer:NODE/MODEL" in caught.value.remedy
    close_session()


def test_without_the_library_the_command_is_named(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(KithError, match="not installed") as caught:
        hub_module.pull(SOURCE, store)
    assert "kithmesh[hub]" in caught.value.remedy
