"""The README's commands, run as they are written, one block after the other, against the real model."""

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from node.paths import models_dir
from scripts.daemons import MARK, processes_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITHIN_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(WITHIN_S + 60)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_commands_of_the_readme_work_as_written(tmp_path: Path, model_path: Path) -> None:
    if not (ROOT / ".venv" / "bin" / "activate").exists():
        pytest.skip("the README's environment, .venv in the checkout, is not there: scripts/test makes it")
    shell = blocks("sh")
    [python] = blocks("python")
    assert len(shell) == 4
    (tmp_path / "example.py").write_text(python)
    # The last block stops the nodes, so the Python comes before it. A panel may honestly disagree (8).
    script = "\n".join(
        ["trap 'echo \"FAILED $? $BASH_COMMAND\"' ERR", *shell[:-1], f"python {tmp_path / 'example.py'}", shell[-1]]
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KITH_", "XDG_"))} | {
        "HOME": str(tmp_path),
        "KITH_MODELS": str(models_dir()),
        MARK: str(tmp_path),
    }
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
    finally:
        left = processes_of(tmp_path)
        for pid in left:
            psutil.Process(pid).kill()
    said = done.stdout + done.stderr
    failed = [line for line in said.splitlines() if line.startswith("FAILED") and "8 kith ask" not in line]
    assert not failed, said
    assert not left, left
    assert "under the flower pot" in done.stdout
    assert "[1, 0, 2]" in done.stdout
    assert "line" in done.stdout, "a summary names its sources"
    assert said.count("stopped") >= 3
    assert "Traceback" not in said


def test_the_readme_names_files_that_are_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
