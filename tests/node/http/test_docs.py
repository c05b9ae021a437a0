"""docs/http.md: its examples run as written, and its tables are the door's."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from node.http.chat import NOT_HONOURED as NOT_IN_CHAT
from node.http.completions import NOT_HONOURED as NOT_IN_COMPLETIONS
from node.http.responses import NOT_HONOURED as NOT_IN_RESPONSES
from node.http.routes import NEEDS
from tests.node.http.conftest import Door

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "http.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)
    return str(found)


async def output_of(*command: str, url: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=environment | {"URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_command_streams(door: Door) -> None:
    said = await output_of("bash", "-c", block("sh"), url=door.url)
    assert '"content": "Why' in said
    assert said.rstrip().endswith("data: [DONE]")


async def test_the_program_runs(door: Door) -> None:
    program = f"import os\nURL = os.environ['URL']\n{block('python')}"
    first, panel, last = (await output_of(sys.executable, "-c", program, url=door.url)).splitlines()
    assert first == "Why is the sky blue?"
    assert re.fullmatch(r"(yes|no) [23] of 3", panel)
    assert last == "What is my name?"


@pytest.mark.parametrize("path", NEEDS)
def test_every_path_stands_there_with_its_scope(path: str) -> None:
    assert re.search(rf"\| `(GET|POST) {path}`.* \| `{NEEDS[path]}` \|", TEXT)


@pytest.mark.parametrize("field", [*NOT_IN_CHAT, *NOT_IN_COMPLETIONS, *NOT_IN_RESPONSES])
def test_every_field_that_is_refused_stands_there(field: str) -> None:
    [row] = [line for line in TEXT.splitlines() if line.endswith("| refused |") and re.search(rf"`{field}\b", line)]
    assert row
