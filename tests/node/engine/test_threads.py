"""How many threads an engine takes beside others."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.engine import threads as threads_module
from node.engine.threads import choose, cores, is_engine, other_engines, take

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@pytest.mark.parametrize(
    ("wanted", "of", "others", "threads", "remedy"),
    [
        (0, 8, 0, 8, ""),
        (3, 8, 0, 3, ""),
        (8, 8, 0, 8, ""),
        (16, 8, 0, 16, "--threads 8"),
        (2, 1, 0, 2, "--threads 1"),
        (0, 8, 1, 4, "--threads 4"),
        (0, 2, 2, 1, "--threads 1"),
        (1, 2, 5, 1, ""),
        (4, 8, 1, 4, ""),
        (8, 8, 1, 8, "--threads 4"),
        (16, 8, 1, 16, "--threads 4"),
    ],
)
def test_cores_are_shared(wanted: int, of: int, others: int, threads: int, remedy: str) -> None:
    found, warning = choose(wanted, of, others)
    assert found == threads
    assert remedy in warning
    assert bool(warning) == bool(remedy)


@pytest.mark.parametrize(
    ("maps", "counts"),
    [
        ("7f /usr/lib/libc.so.6\n", False),
        ("7f /x/libggml-cpu.so\n", True),
        ("7f /x/libggml.so.0.9\n7f /x/libggml-cpu.so\n", True),
        ("7f /x/libggml-base.so (deleted)\n", True),
        ("7f /x/xllamacpp.abi3.so\n", True),
        ("7f /home/me/xllamacpp/lib/libpython3.so\n", False),
        ("7f /x/libggml.so/libpython3.so\n", False),
        ("7f /models/libggml-notes.txt\n", False),
        ("", False),
    ],
)
def test_whoever_has_the_library_is_an_engine(tmp_path: Path, maps: str, counts: bool) -> None:
    (tmp_path / "maps").write_text(maps)
    assert is_engine(tmp_path) == counts


@pytest.mark.parametrize(
    ("file", "arguments", "counts"),
    [
        ("llama-server", ["-m", "x.gguf"], True),
        ("llama-server (deleted)", [], True),
        ("ollama", ["runner", "--model", "x"], True),
        ("ollama", ["serve"], False),  # waits, and starts a runner for each model
        ("ollama", ["run", "x"], False),
        ("python3", ["runner"], False),
        ("llama-server.py", [], False),
    ],
)
def test_an_engine_without_the_library_has_a_name(
    tmp_path: Path, file: str, arguments: list[str], counts: bool
) -> None:
    process(tmp_path, "", file, arguments)
    assert is_engine(tmp_path) == counts


def process(folder: Path, maps: str, file: str, arguments: list[str]) -> None:
    """As /proc shows one."""
    folder.mkdir(exist_ok=True)
    (folder / "maps").write_text(maps)
    (folder / "exe").symlink_to(f"/opt/bin/{file}")
    (folder / "cmdline").write_text("\0".join([file, *arguments, ""]))


def test_each_process_counts_once_and_the_asker_never(tmp_path: Path) -> None:
    process(tmp_path / "1", "7f /usr/lib/libc.so\n", "init", [])
    process(tmp_path / "20", "7f /x/libggml-cpu.so\n", "python3", [])
    process(tmp_path / "21", "7f /x/libggml.so\n7f /x/libggml-cpu.so\n", "llama-server", [])
    process(tmp_path / "me", "7f /x/libggml.so\n", "python3", [])
    (tmp_path / "30" / "maps").mkdir(parents=True)  # can not be read
    assert other_engines(tmp_path, own_pid=7) == 2
    assert other_engines(tmp_path, own_pid=20) == 1
    assert other_engines(tmp_path / "none", own_pid=20) == 0


@LINUX
@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("xllamacpp", "import xllamacpp"),
        ("llama_cpp", "from node.engine import llama; llama.start(warn=print)"),
        ("mesh", "import node.engine.process, node.engine.threads"),  # the daemon's part: no engine
    ],
)
def test_real_processes_of_ours(module: str, more: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    with started(sys.executable, "-c", f"{more}\nprint('up', flush=True)\ninput()") as one:
        assert one.stdout is not None
        assert any(line == b"up\n" for line in one.stdout)
        assert is_engine(Path(f"/proc/{one.pid}")) == (module != "mesh")


@LINUX
@pytest.mark.parametrize(
    ("name", "argument", "counts"),
    [("llama-server", "serve", True), ("ollama", "runner", True), ("ollama", "serve", False), ("cat", "runner", False)],
)
def test_real_processes_of_others(tmp_path: Path, name: str, argument: str, counts: bool) -> None:
    """A program with ggml linked in, as far as can be seen from outside: only its name tells."""
    shell = shutil.which("sh")
    assert shell is not None
    shutil.copy(shell, tmp_path / name)
    (tmp_path / argument).write_text("echo up; read end")
    with started("sh", argument, executable=str(tmp_path / name), cwd=tmp_path) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"up\n"
        assert is_engine(Path(f"/proc/{one.pid}")) == counts


@contextmanager
def started(*command: str, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as one:
        try:
            yield one
        finally:
            one.kill()


def test_what_is_amiss_is_said_where_the_log_reads_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(threads_module, "other_engines", lambda: 0)
    assert take(0) == 4
    assert capsys.readouterr().err == ""
    assert take(5) == 5
    assert "--threads 4" in capsys.readouterr().err


def test_this_machine_has_cores() -> None:
    assert cores() >= 1
    assert other_engines() >= 0
