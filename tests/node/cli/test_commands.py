"""Tests of the commands about the node, the mesh, chat, knowledge and models."""

import io
import sys
from pathlib import Path

import pytest

from mesh.wire import local_pb2
from node.cli import service
from node.config import NodeConfig
from node.errors import ExitCode, KithError
from node.paths import NodePaths
from tests.node.cli.conftest import Kith
from tests.node.cli.local_node import IDS, LocalNode
from tests.node.cli.test_output import on_a_terminal


def test_status(kith: Kith, local_node: LocalNode) -> None:
    out = kith("status").out
    assert "anna (aaaaaaaaaaaa)" in out
    assert "127.0.0.1:7420, [::1]:7420" in out
    assert "1 h 2 min" in out
    assert "kv cache split (set so)" in out
    value = kith("status", "--json").json
    assert (value["kv_cache"], value["kv_cache_why"]) == ("split", "set so")
    assert (value["node_id"], value["engine_state"], value["agent"]["slots"]) == (IDS[0], "ready", 2)


def test_status_says_which_mesh_and_what_may_end_it(kith: Kith, local_node: LocalNode) -> None:
    out = kith("status").out
    assert "our\N{REPLACEMENT CHARACTER} room (555555555555), as issuer; certificate ends in 20 d" in out
    assert "warning" not in out
    mesh = kith("status", "--json").json["mesh"]
    assert (mesh["mesh_id"], mesh["role"], mesh["issuers"], mesh["backed_up_ms"]) == ("5" * 32, "issuer", 2, None)
    local_node.issuers = 1
    assert "kith ca backup FILE, and kith promote NODE" in kith("status").out
    local_node.backed_up_ms = 1_000
    out = kith("status").out  # a backup brings the key back; until then nobody is renewed
    assert "renewed (kith promote NODE)" in out
    local_node.certificate_ends_ms = 1000
    out = kith("status").out
    assert "certificate has ended" in out
    assert "until an issuer renews it" in out


def test_nodes_are_listed_and_a_name_can_not_control_the_terminal(kith: Kith, local_node: LocalNode) -> None:
    out = kith("nodes").out
    assert "\x1b" not in out
    assert "alive, leader" in out
    assert "suspect (2.0 s)" in out
    assert out.splitlines()[1].endswith("this node")
    values = kith("nodes", "--json").json["nodes"]
    assert [value["state"] for value in values] == ["alive", "alive", "suspect"]


def test_no_node_ends_with_3_and_says_how_to_start_one(kith: Kith) -> None:
    for arguments in (("status",), ("nodes",), ("jobs",), ("ask", "x"), ("chat", "x"), ("down",), ("model", "show")):
        done = kith(*arguments)
        assert done.code == ExitCode.UNREACHABLE, arguments
        first, second = done.err.splitlines()
        assert first.startswith("kith: no node runs under ")
        assert second.startswith("  → kith --data-dir ")


def test_chat_one_message(kith: Kith, local_node: LocalNode) -> None:
    done = kith("chat", "hello there", "--system", "Be brief.", "--max-tokens", "9", "--seed", "3", "--node", "ben")
    assert done.out == "You said: hello there\n"
    asked = local_node.asked[0]
    assert [(one.role, one.content) for one in asked.request.messages] == [
        ("system", "Be brief."),
        ("user", "hello there"),
    ]
    assert (asked.request.max_tokens, asked.request.sampling.seed, asked.node) == (9, 3, "ben")


def test_chat_from_a_pipe_keeps_the_dialogue(
    kith: Kith, local_node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n/new\nthree\n/exit\nfour\n"))
    done = kith("chat")
    assert done.out == "You said: one\nYou said: two\nYou said: three\n"
    asked = [[one.content for one in chat.request.messages] for chat in local_node.asked]
    assert asked == [["one"], ["one", "You said: one", "two"], ["three"]]


def test_chat_as_json(kith: Kith, local_node: LocalNode) -> None:
    value = kith("chat", "hi", "--json").json
    assert (value["text"], value["reason"], value["node_name"]) == ("You said: hi", "stop", "anna")
    assert value["usage"]["completion_tokens"] == 3


def test_chat_says_what_the_node_says(kith: Kith, local_node: LocalNode, data_dir: Path) -> None:
    local_node.chat_problem = KithError("no-agent", "no agent is ready", "wait for one: kith nodes")
    done = kith("chat", "hi")
    assert done.code == ExitCode.UNAVAILABLE
    assert done.err == f"kith: no agent is ready\n  → wait for one: kith --data-dir {data_dir} nodes\n"
    assert kith("chat", "  ").code == ExitCode.BAD_INPUT


def test_knowledge(kith: Kith, local_node: LocalNode, tmp_path: object) -> None:
    added = kith("knowledge", "add", "The router is in room 4.", "--title", "Router", "--tag", "it", "--tag", "office")
    assert added.out == "added 010101010101\n"
    assert list(local_node.added[0].tags) == ["it", "office"]
    found = kith("knowledge", "search", "router").out
    assert "1. Router" in found
    assert "room 4" in found
    assert "#it, #office" in found
    assert kith("knowledge", "search", "router", "--json").json["hits"][0]["item_id"] == "01" * 32
    assert kith("knowledge", "search", "elephant").out == "nothing found\n"


def test_knowledge_takes_a_text_or_a_file(kith: Kith, local_node: LocalNode, data_dir: object) -> None:
    assert kith("knowledge", "add").code == ExitCode.USAGE
    assert kith("knowledge", "add", "x", "--file", "y").code == ExitCode.USAGE
    assert kith("knowledge", "add", " ").code == ExitCode.BAD_INPUT


def test_model_show(kith: Kith, local_node: LocalNode) -> None:
    out = kith("model", "show").out
    assert "93.5 MiB, 135 M parameters, Q4_1" in out
    assert kith("model", "show", "--json").json["path"] == "/models/smollm2.gguf"


def test_logs(kith: Kith, data_dir: object) -> None:
    missing = kith("logs")
    assert missing.code == ExitCode.NOT_FOUND
    path = NodePaths(data_dir).log  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"line {n}\n" for n in range(100)) + "evil \x1b[2J\n", encoding="utf-8")
    assert kith("logs", "-n", "2").out == "line 99\nevil \N{REPLACEMENT CHARACTER}[2J\n"
    assert len(kith("logs", "--json").json["lines"]) == 50
    assert kith("logs", "-n", "0").out == ""
    assert kith("logs", "--json", "--follow").code == ExitCode.USAGE


def test_config_show_says_where_values_come_from(
    kith: Kith, data_dir: object, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("KITH_SLOTS", "3")
    settings = kith("config", "show", "--json").json["settings"]
    assert settings["slots"] == {"value": 3, "origin": "$KITH_SLOTS"}
    assert settings["seeds"] == {"value": [], "origin": "default"}
    row = next(line for line in kith("config", "show").out.splitlines() if line.startswith("slots"))
    assert row.split() == ["slots", "3", "$KITH_SLOTS"]


def test_doctor_reports_a_healthy_node(kith: Kith, local_node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_ENGINE", "echo")
    monkeypatch.setenv("KITH_MDNS", "no")
    done = kith("doctor", "--json")
    checks = {(one["check"], one["level"]) for one in done.json["checks"]}
    assert done.code == ExitCode.OK, done.out
    assert {("python", "ok"), ("data", "ok"), ("node", "ok"), ("engine", "ok"), ("peers", "ok")} <= checks


def test_doctor_says_that_a_node_was_cut_off(
    kith: Kith, local_node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITH_ENGINE", "echo")
    monkeypatch.setenv("KITH_MDNS", "no")
    local_node.revoked = "stolen"
    done = kith("doctor")
    assert done.code == ExitCode.FAILED
    assert "this node was cut off from its mesh: stolen" in done.out
    assert "leave, then" in done.out


def test_doctor_fails_on_what_stops_a_node(kith: Kith, data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_ENGINE", "ecko")
    done = kith("doctor")
    assert done.code == ExitCode.FAILED
    assert "fail  settings" in done.out
    assert "did you mean echo?" in done.out


def test_doctor_knows_every_variable_that_counts(kith: Kith, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("KITH_ENGINE", "echo")
    monkeypatch.setenv("KITH_MDNS", "no")
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    assert "means nothing" not in kith("doctor").out
    monkeypatch.setenv("KITH_MODLE", "x")
    assert "$KITH_MODLE means nothing to kith" in kith("doctor").out


def test_doctor_wants_the_key_private(kith: Kith, data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_ENGINE", "echo")
    monkeypatch.setenv("KITH_MDNS", "no")
    key = NodePaths(data_dir).key  # type: ignore[arg-type]
    key.parent.mkdir(parents=True)
    key.write_text("secret")
    key.chmod(0o600)
    done = kith("doctor")
    assert done.code == ExitCode.FAILED
    assert "it holds no key that can be read" in done.out
    key.chmod(0o644)
    done = kith("doctor")
    assert done.code == ExitCode.FAILED
    assert f"chmod 600 {key}" in done.out


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        (("jobs",), ["a1a1a1a1a1a1", "completed"]),
        (("nodes",), ["anna", "127.0.0.1:7420"]),
        (("model", "list"), ["a-model-of-some-length-Q4_K_M.gguf"]),
    ],
)
def test_tables_fit_a_narrow_terminal(
    kith: Kith,
    local_node: LocalNode,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    whole: list[str],
) -> None:
    (tmp_path / "a-model-of-some-length-Q4_K_M.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    terminal = on_a_terminal(monkeypatch, 60)
    assert kith(*arguments).code == ExitCode.OK
    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert max(map(len, lines)) <= 60
    assert all(any(word in line.split() for line in lines) for word in whole), lines


def test_the_lines_of_status_are_folded_between_words(
    kith: Kith, local_node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch, 60)
    kith("status")
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith(" " * 9) for line in lines), "what follows is under what went before"


def test_a_new_key_is_all_that_key_add_writes(kith: Kith, data_dir: Path) -> None:
    done = kith("key", "add", "bot")
    assert done.out.count("\n") == 1
    assert done.out.startswith("kith-")
    assert "for bot: chat, models, embeddings" in done.err
    head, row = kith("key", "list").out.splitlines()
    assert head.split() == ["name", "good", "for", "made"]
    assert row.startswith("bot ")


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"http": "127.0.0.1:8420"}, "http://127.0.0.1:8420"),
        ({"http": "127.0.0.1:8420", "http_cert": "c.pem"}, "https://127.0.0.1:8420"),
        ({"http": "10.0.0.7:8420"}, "https://10.0.0.7:8420"),
    ],
)
def test_a_started_node_says_where_its_http_door_is_as_a_browser_takes_it(
    tmp_path: Path, settings: dict[str, str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = NodeConfig(data_dir=tmp_path, **settings)  # type: ignore[arg-type]
    service._print_ready(local_pb2.StatusReply(http_address=config.http), config)
    assert f"  http     {url}\n" in capsys.readouterr().out
