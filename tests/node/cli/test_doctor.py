"""What `kith doctor` says of engines; the rest of it is tried through a daemon, in test_through_daemon.py."""

from pathlib import Path

import pytest

from node.cli import doctor
from node.cli.finding import Finding
from node.config import NodeConfig
from node.engine import installed


def finding(engine: str) -> Finding:
    state = doctor._State(Path("unused"), NodeConfig(data_dir=Path("unused"), engine=engine))
    [one] = doctor._engine(state)
    return one


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Without libraries and without a compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    return monkeypatch


def test_nothing_installed_and_no_compiler_means_the_ready_made_one(machine: pytest.MonkeyPatch) -> None:
    one = finding("llama")
    assert one.level == "fail"
    assert "no C++ compiler" in one.message
    assert one.remedy == "pip install 'kithmesh[xllamacpp]'"


def test_with_a_compiler_the_one_for_this_cpu(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    assert finding("llama").remedy == "pip install 'kithmesh[llama]'"
    assert finding("xllamacpp").remedy == "pip install 'kithmesh[xllamacpp]'"


def test_one_that_is_there_is_named(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(installed, "find_spec", lambda name: object() if name == "xllamacpp" else None)
    assert finding("llama").remedy == "kith up --engine xllamacpp"


def test_engines_without_a_library(machine: pytest.MonkeyPatch) -> None:
    assert (finding("openai").level, finding("echo").level) == ("ok", "ok")


def test_ready_made_one_says_what_it_is_built_for() -> None:
    pytest.importorskip("xllamacpp")
    one = finding("xllamacpp")
    assert one.level == "ok"
    assert "ready-made for: " in one.message
