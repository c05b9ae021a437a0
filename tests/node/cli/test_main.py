"""Tests of node/cli/main.py: every end of a command, and that it starts quickly."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli import main, session
from node.errors import ExitCode
from tests.node.cli.conftest import Kith
from tests.node.cli.local_node import LocalNode

COMMAND = [sys.executable, "-m", "node.cli.main"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("staus",),
        ("ask",),
        ("jobs", "--opne"),
        ("ask", "x", "--panel", "0"),
        ("ask", "x", "--panel", "many"),
        ("up", "y"),
    ],
)
def test_wrong_command_line_ends_with_2_in_two_lines(kith: Kith, arguments: tuple[str, ...]) -> None:
    done = kith(*arguments)
    assert done.code == ExitCode.USAGE
    first, second = done.err.splitlines()
    assert first.startswith("kith: ")
    assert second.startswith("  → kith")
    assert second.endswith("--help")
    as_json = kith(*arguments, "--json")
    assert (as_json.code, as_json.json["error"]["code"]) == (ExitCode.USAGE, "usage")


def test_nearest_command_is_offered(kith: Kith) -> None:
    assert "Did you mean 'status'?" in kith("staus").err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == ExitCode.USAGE
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, "disk-full", "the disk is full"),
        (errno.EROFS, "disk-failed", "the disk can only be read"),
        (errno.EIO, "disk-failed", "the disk does not read or write"),
    ],
)
def test_a_disk_that_takes_nothing_is_no_bug_and_said_with_what_to_do(
    kith: Kith, data_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, words: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    done = kith("key", "add", "x")
    assert done.code == ExitCode.FAILED
    first, second = done.err.splitlines()
    assert first == f"kith: {words}"
    assert "try again" in second
    assert kith("key", "add", "x", "--json").json["error"]["code"] == code


def test_unexpected_error_is_one_line_that_names_log_and_switch(
    kith: Kith, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(session, "ask_node", broken)
    done = kith("nodes")
    assert done.code == ExitCode.FAILED
    first, second = done.err.splitlines()
    assert "RuntimeError: boom" in first
    assert str(data_dir / "logs" / "kith.log") in second
    assert "KITH_DEBUG=1" in second
    monkeypatch.setenv("KITH_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        kith("nodes")


def test_interrupt_ends_with_130(kith: Kith, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "ask_node", interrupted)
    done = kith("nodes")
    assert (done.code, done.err) == (ExitCode.INTERRUPTED, "kith: interrupted\n")


def test_interrupted_watch_says_that_the_job_goes_on(local_node: LocalNode, data_dir: Path) -> None:
    command = [*COMMAND, "--data-dir", str(data_dir), "watch", "e1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        while "started" not in watching.stderr.readline():
            assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert watching.returncode == ExitCode.INTERRUPTED
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-2:] == [
        "kith: stopped watching; job e1e1e1e1e1e1 goes on",
        f"  → kith --data-dir {data_dir} watch e1e1e1e1e1e1, or kith --data-dir {data_dir} cancel e1e1e1e1e1e1",
    ]


def test_reader_that_leaves_is_no_error(local_node: LocalNode, data_dir: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, "--data-dir", str(data_dir), "jobs"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")


def test_output_that_the_terminal_can_not_show_is_replaced(local_node: LocalNode, data_dir: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--data-dir", str(data_dir), "result", "a1"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert b"?" in done.stdout


def test_data_dir_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITH_DATA_DIR", str(tmp_path / "there"))
    assert main.run(["status"]) == ExitCode.UNREACHABLE
    assert f"no node runs under {tmp_path / 'there'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--version"], ""),
        (["--help"], ""),
        (["submit", "--help"], ""),
        (["up", "--slots", "0"], ""),  # as far as the daemon's own imports
        (["status"], "grpc google.protobuf asyncio"),
    ],
)
def test_commands_load_nothing_heavy(arguments: list[str], allowed: str, tmp_path: Path) -> None:
    heavy = ("rich", "pydantic", "grpc", "google.protobuf", "asyncio", "numpy", "cvxpy", "llama_cpp")
    code = (
        "import sys; from node.cli.main import run; run(sys.argv[1:]); "
        f"print(*(m for m in {heavy} if m in sys.modules), file=sys.__stderr__)"
    )
    command = [sys.executable, "-c", code, "--data-dir", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stderr.splitlines()[-1].split()
    assert set(loaded) <= set(allowed.split())


def test_shell_completion_knows_the_commands() -> None:
    environment = os.environ | {"_KITH_COMPLETE": "complete_bash", "COMP_WORDS": "kith s", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["status", "story", "service", "submit"]


NOT_UTF8 = "caf\udce9?"  # as Python reads the Latin-1 word for it


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", NOT_UTF8),
        ("chat", NOT_UTF8),
        ("chat", "hi", "--system", NOT_UTF8),
        ("knowledge", "add", NOT_UTF8),
        ("knowledge", "search", NOT_UTF8),
        ("cancel", "e1", "--reason", NOT_UTF8),
    ],
)
def test_what_is_no_utf8_is_refused_in_words(kith: Kith, local_node: LocalNode, arguments: tuple[str, ...]) -> None:
    done = kith(*arguments)
    assert done.code == ExitCode.BAD_INPUT
    assert done.err.startswith("kith: this is not UTF-8: 'caf\N{REPLACEMENT CHARACTER}?'\n")
    assert "iconv" in done.err


@pytest.mark.parametrize("arguments", [("ask", "-"), ("knowledge", "add", "-"), ("chat",)])
@pytest.mark.parametrize("decoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_standard_input_that_is_no_utf8_is_refused_in_words(
    local_node: LocalNode, data_dir: Path, arguments: tuple[str, ...], decoding: str
) -> None:
    done = subprocess.run(
        [*COMMAND, "--data-dir", str(data_dir), *arguments],
        input=b"caf\xe9?\n",
        env=os.environ | {"PYTHONIOENCODING": decoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stderr.startswith(b"kith: this is not UTF-8: "), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device on this system")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_onto_a_full_disk_is_said_in_words(local_node: LocalNode, data_dir: Path, more: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "--data-dir", str(data_dir), "jobs", *more], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.splitlines()[0] == b"kith: the disk is full"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["jobs", "status --json", "result zz"])
def test_closed_streams_are_no_traceback(local_node: LocalNode, data_dir: Path, closed: str, command: str) -> None:
    line = f'"{sys.executable}" -m node.cli.main --data-dir "{data_dir}" {command} {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == (ExitCode.NOT_FOUND if "zz" in command else ExitCode.OK)
    assert "Traceback" not in done.stderr


def test_a_remedy_names_the_data_directory_that_was_meant(kith: Kith, local_node: LocalNode, data_dir: Path) -> None:
    assert kith("result", "zz").err.splitlines()[1] == f"  → kith --data-dir {data_dir} jobs lists them"
    assert kith("result", "zz", "--json").json["error"]["remedy"] == f"kith --data-dir {data_dir} jobs lists them"


@pytest.mark.parametrize("group", [(), ("submit",), ("model",), ("ca",), ("key",), ("knowledge",), ("config",)])
def test_no_line_of_the_list_of_commands_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main.run([*group, "--help"])
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_waiting_for_nodes_says_what_is_missing(data_dir: Path) -> None:
    command = [*COMMAND, "--data-dir", str(data_dir), "nodes", "--wait", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"waiting: 0 of 2 agents are ready; no node runs under {data_dir}\n"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, err) == (ExitCode.INTERRUPTED, "", "kith: interrupted\n")
