"""docs/cli.md says what the command does: exit codes, commands, options, settings, JSON keys."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mesh.wire import facts_pb2, local_pb2, work_pb2
from node.cli import as_json, settings
from node.cli.main import app, command_names
from node.errors import ExitCode
from tests.node.cli.local_node import PANEL, SUMMARY, finished_jobs, results, with_alternatives

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")


def section(command: str) -> str:
    """The part of the page about a command, from its heading to the next."""
    found = re.search(rf"^### `kith {command}(?: [^`]*)?`\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S)
    assert found, f"no section about kith {command}"
    return found[1]


def group(command: str) -> str:
    """The larger part that a command's section is in."""
    return next(part for part in re.split(r"^## ", TEXT, flags=re.M) if f"### `kith {command}" in part)


def options() -> Iterator[tuple[str, str]]:
    root: Any = typer.main.get_command(app)
    for name in command_names():
        found = root
        for word in name.split():
            found = found.commands[word]
        for parameter in found.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("-") and option not in ("--help", "-h"):
                    yield name, option


def test_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", TEXT, re.M)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]


@pytest.mark.parametrize("name", command_names())
def test_every_command_has_a_section(name: str) -> None:
    assert section(name).strip()


def test_no_section_is_about_a_command_that_is_gone() -> None:
    headed = re.findall(r"^### `kith ([a-z ]+?)(?: [A-Z\[][^`]*)?`$", TEXT, re.M)
    assert sorted(headed) == sorted(command_names())


@pytest.mark.parametrize(("name", "option"), list(options()))
def test_every_option_is_described(name: str, option: str) -> None:
    shared = group(name) if name in ("ask", "submit summarize") else ""
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", section(name) + shared)


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_in_the_table_with_its_option(setting: settings.Setting) -> None:
    option = re.escape(setting.option)
    assert re.search(rf"^\| {f'`{option}[^|]*`' if option else ''} ?\| `{setting.name}` \|", TEXT, re.M)


def test_every_setting_with_an_option_is_an_option_of_up() -> None:
    of_up = {option for name, option in options() if name == "up"}
    assert {setting.option for setting in settings.SETTINGS if setting.option} | {"--config", "--moved"} == of_up


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_json_key_is_documented() -> None:
    jobs = finished_jobs()
    rounds = [local_pb2.ExplainedRound(assigned=facts_pb2.JobAssigned(assignments=[facts_pb2.AssignmentRecord()]))]
    shapes = [
        as_json.status(local_pb2.StatusReply(mesh=local_pb2.MeshInfo())),
        as_json.node(local_pb2.NodeInfo(profile=facts_pb2.NodeProfile(agents=[facts_pb2.AgentProfile()]))),
        as_json.result(local_pb2.ResultReply(job=jobs[SUMMARY], result=results()[SUMMARY], document=b"text")),
        as_json.result(local_pb2.ResultReply(job=jobs[PANEL], result=results()[PANEL])),
        {"alternatives": as_json.alternatives(with_alternatives())},
        as_json.story(local_pb2.StoryReply(events=[local_pb2.StoryEvent()])),
        as_json.explanation(local_pb2.ExplainReply(job=jobs[PANEL], rounds=rounds)),
        as_json.hit(local_pb2.KnowledgeHit()),
        as_json.model(local_pb2.ShowModelReply()),
        as_json.panel(work_pb2.PanelResult()),
    ]
    missing = {key for key in keys(shapes) if f"`{key}`" not in TEXT}
    assert missing == set()
