"""A llama-server that can not be compared with is named, with what it says."""

import sys
from pathlib import Path

import pytest

from node.errors import KithError
from scripts.benches import engine


def refusal(monkeypatch: pytest.MonkeyPatch, server: Path) -> KithError:
    monkeypatch.setattr(engine, "SERVER", str(server))
    with pytest.raises(KithError) as caught:
        engine.Theirs(sys.executable, Path("model.gguf"), 1)
    assert "KITH_BENCH_SERVER" in caught.value.remedy
    return caught.value


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "llama-server"
    error = refusal(monkeypatch, missing)
    assert error.message.startswith(f"the llama-server {missing} does not start: ")
    assert "No such file" in error.message


def test_a_server_that_may_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "llama-server"
    file.write_text("no program")
    assert "Permission denied" in refusal(monkeypatch, file).message


def test_a_server_that_ends_at_once_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "llama-server"
    file.write_text("#!/bin/sh\necho error: no such library: libggml\nexit 1\n")
    file.chmod(0o755)
    assert "no such library: libggml" in refusal(monkeypatch, file).message
