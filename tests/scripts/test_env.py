"""Which engine an environment gets, and that a machine without a compiler gets one that answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import _env, _llama
from scripts._env import engine_for


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Without a compiler, a wheel that was built before, or a wish."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("KITH_ENGINE", raising=False)
    monkeypatch.setattr(_llama, "cached", lambda: None)
    monkeypatch.setattr(_env, "ready_made_runs", lambda: True)
    return monkeypatch


def compiler_in(folder: Path) -> None:
    path = folder / "g++"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_without_a_compiler_the_ready_made_one(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert engine_for("run") == "xllamacpp"
    compiler_in(tmp_path)
    assert engine_for("run") == "llama"


def test_wheel_that_was_built_before_needs_no_compiler(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(_llama, "cached", lambda: Path("some.whl"))
    assert engine_for("run") == "llama"


def test_developing_and_systems_without_a_wheel_ask_for_a_compiler(machine: pytest.MonkeyPatch) -> None:
    assert engine_for("dev") == "llama"
    machine.setattr(_env, "ready_made_runs", lambda: False)
    assert engine_for("run") == "llama"


def test_the_user_chooses(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("KITH_ENGINE", "llama")
    assert engine_for("run") == "llama"
    compiler_in(tmp_path)
    machine.setenv("KITH_ENGINE", "xllamacpp")
    assert engine_for("run") == "xllamacpp"
    assert _env.wanted_stamp("run")["engine"] == "xllamacpp"


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_environment_without_a_compiler_answers(tmp_path: Path, model_path: Path) -> None:
    """Made with nothing but Python on the path; then an engine in it writes with the real model."""
    if not _env.ready_made_runs():
        pytest.skip("there is no wheel of xllamacpp for this system")
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
    empty = tmp_path / "empty"
    empty.mkdir()
    environment |= {"PATH": str(empty), "HOME": str(tmp_path), "PYTHONPATH": str(_env.ROOT), "KITH_ENGINE": "xllamacpp"}
    venv = tmp_path / "venv"
    python = os.path.realpath(sys.executable)
    made = subprocess.run(
        [python, "-P", "-m", "scripts._env", "--venv", str(venv), "--kind", "run"],
        env=environment, cwd=_env.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "There is no C++ compiler here" in made.stderr
    code = """
import asyncio, sys
from pathlib import Path
from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine.installed import default_engine, installed
from node.engine.process import EngineProcess

async def main():
    assert not installed("llama") and default_engine() == "xllamacpp"
    config = NodeConfig(data_dir=Path("unused"), engine=default_engine(), threads=1, ctx=512)
    engine = EngineProcess(config, Path(sys.argv[1]), print)
    await engine.start()
    message = engine_pb2.ChatMessage(role="user", content="Say hello.")
    request = engine_pb2.GenerateRequest(messages=[message], max_tokens=4)
    print("said:", "".join([event.delta.text async for event in engine.generate(request)]))
    await engine.stop()

asyncio.run(main())
"""
    del environment["PYTHONPATH"]
    said = subprocess.run(
        [venv / "bin" / "python", "-c", code, str(model_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "said: " in said.stdout
    assert said.stdout.strip() != "said:"
