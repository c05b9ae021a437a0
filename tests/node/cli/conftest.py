"""A world with a known node, and a way to run one command line in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import run
from tests.node.cli.local_node import LocalNode, serve


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        lines = self.out.splitlines()
        assert len(lines) == 1, f"not one line: {self.out!r}"
        return json.loads(lines[0])


Kith = Callable[..., Outcome]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def local_node(data_dir: Path) -> Iterator[LocalNode]:
    node = LocalNode()
    server = serve(data_dir, node)
    yield node
    server.stop(0).wait()


@pytest.fixture
def kith(data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kith:
    """Run one command line against the node of `data_dir`, in this process."""
    for name in ("KITH_DATA_DIR", "KITH_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(["--data-dir", str(data_dir), *arguments])
        captured = capsys.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return call
