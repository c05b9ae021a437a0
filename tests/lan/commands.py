"""What people see: the real `kith`, asked about a node of the LAN."""

import json
import subprocess
import sys
from typing import Any

from node.errors import ExitCode
from scripts.daemons import ROOT, Daemon


def kith(node: Daemon, *arguments: str) -> str:
    """What it prints; a panel without a majority is an answer too."""
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(node.data_dir), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (ExitCode.OK, ExitCode.NO_MAJORITY), f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def said(node: Daemon, *arguments: str) -> Any:
    """The same as JSON."""
    return json.loads(kith(node, *arguments, "--json"))
