"""The file for `kith up --model`: what is here is taken, what is not is fetched or refused."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import close_session

from node.errors import KithError
from node.models.obtaining import Tenths, obtain
from tests.node.models.gguf_files import gguf_bytes, write_gguf
from tests.node.models.hub_server import REPO, serving


def test_model_of_the_hub_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    said: list[str] = []
    with serving({"T.gguf": gguf_bytes()}) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        path = obtain(f"hf://{REPO}/T.gguf", said.append)
        close_session()
    assert path == tmp_path / "T.gguf"
    assert said[0] == f"Fetching hf://{REPO}/T.gguf."
    said.clear()
    assert obtain(f"hf://{REPO}/T.gguf", said.append) == path  # also without any network
    assert obtain("T", said.append) == path
    assert said == []


def test_what_is_named_and_not_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    write_gguf(tmp_path / "own" / "x.gguf")
    assert obtain(str(tmp_path / "own" / "x.gguf"), print) == tmp_path / "own" / "x.gguf"
    with pytest.raises(KithError, match="there is no model file"):
        obtain("Nothing", print)


def test_progress_is_said_in_tenths() -> None:
    said: list[str] = []
    tell = Tenths(said.append)
    for done in range(0, 1001, 10):
        tell(done * 1_000_000, 1_000_000_000)
    assert 8 <= len(said) <= 10
    assert said[0] == "Fetched 100 of 1000 MB."
