"""The command through a real daemon with the echo engine: what a person does in the first ten minutes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kithmesh import Client, LLMAgent
from node.errors import ExitCode

if TYPE_CHECKING:
    from scripts.daemons import Daemon
from scripts.throwaway import ThrowawayMesh

DOCUMENT = """# Rivers

The Rhine rises in the Alps. It flows through six countries and ends in the North Sea. Many ships use it every day.

# 湖泊

康斯坦茨湖位于三个国家之间。莱茵河流入湖中。人们饮用湖水。
"""


def kith(node: Daemon, *arguments: str, code: ExitCode = ExitCode.OK) -> str:
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(node.data_dir), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}\n{node.tail()}"
    assert "Traceback" not in done.stderr
    return done.stdout if code in (ExitCode.OK, ExitCode.NO_MAJORITY) else done.stderr


def value(node: Daemon, *arguments: str) -> Any:
    return json.loads(kith(node, *arguments, "--json"))


@pytest.fixture
def node(daemon: Callable[..., Daemon]) -> Daemon:
    one = daemon(name="anna")
    asyncio.run(one.ready())
    return one


@pytest.mark.slow
def test_first_ten_minutes(node: Daemon, tmp_path: Path) -> None:
    printed = node.output.read_text(encoding="utf-8")
    status = value(node, "status")
    assert printed.startswith("ready  anna (" + status["node_id"][:12])
    assert "to members of its mesh only" in printed
    assert f"kith --data-dir {node.data_dir} down" in printed
    assert (status["name"], status["engine_state"], status["pid"]) == ("anna", "ready", node.pid)
    assert [one["self"] for one in value(node, "nodes")["nodes"]] == [True]

    document = tmp_path / "rivers.md"
    document.write_text(DOCUMENT, encoding="utf-8")
    summary = value(node, "submit", "summarize", str(document))
    assert summary["job"]["state"] == "completed"
    assert all(DOCUMENT.find(sentence["sources"][0]["text"]) >= 0 for sentence in summary["summary"]["sentences"])
    assert summary["replicas"] == 1

    asked = value(node, "ask", "湖水干净吗？", "--options", "是,否")
    assert asked["panel"]["answer"] in ("是", "否")
    assert len(asked["panel"]["ballots"][0]["probabilities"]) == 2

    short = summary["job"]["job_id"][:6]
    assert short in kith(node, "jobs")
    assert kith(node, "result", short) == kith(node, "watch", short)
    assert "round 1 by anna" in kith(node, "explain", short)
    assert "had already ended" in kith(node, "cancel", short)
    assert "there is no job" in kith(node, "watch", "ffffffff" * 8 + "f", code=ExitCode.NOT_FOUND)

    assert "hello" in kith(node, "chat", "hello")
    kith(node, "knowledge", "add", "The router is in room 4.", "--title", "Router")
    assert "room 4" in kith(node, "knowledge", "search", "router")
    assert "echo" in kith(node, "model", "show")
    assert "serving on" in kith(node, "logs", "-n", "1000")
    assert value(node, "doctor")["ok"]


def test_panel_larger_than_the_mesh_is_refused(node: Daemon) -> None:
    assert "panel" in kith(node, "ask", "x", "--panel", "9", code=ExitCode.UNAVAILABLE)


def test_second_node_of_one_directory_can_not_start(node: Daemon) -> None:
    said = kith(node, "up", "--engine", "echo", "--no-mdns", code=ExitCode.CANNOT_START)
    first, second = said.splitlines()
    assert first.startswith("kith: ")
    assert second.startswith("  → ")


def test_port_that_is_taken_is_said_in_two_lines(node: Daemon, tmp_path: Path) -> None:
    address = value(node, "status")["addresses"][0]
    ThrowawayMesh().enrol(tmp_path / "other")
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(tmp_path / "other")]
    more = ["up", "--engine", "echo", "--no-mdns", "--listen", address]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (ExitCode.CANNOT_START, "")
    first, second = done.stderr.splitlines()
    assert address in first
    assert "--listen" in second


def test_a_node_whose_http_port_is_taken_was_never_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(tmp_path / "other")]
        more = ["up", "--engine", "echo", "--no-mdns", "--http", address]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (ExitCode.CANNOT_START, "")
    assert done.stderr.splitlines()[-2] == f"kith: {address} is taken"


def test_down_ends_the_node(node: Daemon) -> None:
    assert kith(node, "down") == "stopped\n"
    assert node.process is not None
    assert node.process.wait(timeout=30) == ExitCode.OK
    assert node.output.read_text(encoding="utf-8").endswith("stopped\n")
    assert "no node runs under" in kith(node, "status", code=ExitCode.UNREACHABLE)


def test_interrupt_ends_the_node_in_good_order(node: Daemon) -> None:
    node.send(signal.SIGINT)
    assert node.process is not None
    assert node.process.wait(timeout=30) == ExitCode.OK
    printed = node.output.read_text(encoding="utf-8")
    assert "Traceback" not in printed
    assert printed.endswith("stopped\n")


def test_programs_use_the_same_node(node: Daemon) -> None:
    with Client(node.data_dir) as mesh:
        assert mesh.ask("Which?", options=["tea", "coffee"]).answer in ("tea", "coffee")
        mesh.add_knowledge("The lake is deep.")
    with LLMAgent(node.data_dir, system="You answer in one sentence.") as agent:
        assert agent.process_instruction("What is a mesh?")
        assert agent.retrieve("lake")[0].text == "The lake is deep."
