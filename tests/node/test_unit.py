"""The unit's text: what systemd reads in it, and its name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from node.errors import ExitCode, KithError
from node.unit import NAME_LETTERS, STOP_S, Unit

PYTHON = Path("/usr/bin/python3")
#: A folder's name with everything that means something to systemd, to a shell or to a pattern.
ODD = "a b%h$HOME \"c\" 'd' \\e;f [g]*?"


def settings(unit: Unit) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.text.splitlines() if "=" in line and not line.startswith("#"))


def test_a_node_that_was_stopped_stays_down_and_every_other_end_is_followed_by_a_start() -> None:
    said = settings(Unit(Path("/srv/kith"), PYTHON))
    assert said["Type"] == "notify"
    assert said["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in said
    assert said["StartLimitIntervalSec"] == "0"


def test_a_stopping_node_has_time_for_its_tasks_and_ends_its_engine_itself() -> None:
    said = settings(Unit(Path("/srv/kith"), PYTHON))
    assert said["KillMode"] == "mixed"
    assert int(said["TimeoutStopSec"]) == STOP_S > 10


def test_root_has_a_unit_that_runs_as_somebody_and_a_user_one_that_does_not_say() -> None:
    mine, roots = settings(Unit(Path("/srv/kith"), PYTHON)), settings(Unit(Path("/srv/kith"), PYTHON, "anna"))
    assert "User" not in mine
    assert mine["WantedBy"] == "default.target"
    assert roots["User"] == "anna"
    assert roots["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("user", ["", "anna"])
def test_nothing_hides_the_devices_or_the_folder_of_the_socket(user: str) -> None:
    said = settings(Unit(Path("/srv/kith"), PYTHON, user))
    assert not {"PrivateTmp", "PrivateDevices", "DevicePolicy", "ProtectHome", "MemoryDenyWriteExecute"} & said.keys()


def test_the_name_tells_two_folders_of_one_name_apart() -> None:
    names = {Unit(Path(folder), PYTHON).name for folder in ("/home/anna/mesh/a", "/home/ben/mesh/a", "/a")}
    assert len(names) == 3
    assert all(name.startswith("kith-a-") for name in names)


@pytest.mark.parametrize("folder", ["/", "/srv/" + ODD, "/srv/" + "x" * 250, "/srv/怎么办", "/srv/.", "/srv/a@b-c"])
def test_every_name_is_one_that_systemd_and_a_shell_take_as_it_is(folder: str) -> None:
    name = Unit(Path(folder), PYTHON).name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert len(name) <= len("kith--01234567.service") + NAME_LETTERS


@pytest.mark.parametrize("name", ["a\nUser=root", "a\x1b[m", "a\x7f", "a\udcff"])
def test_a_path_that_systemd_can_not_read_is_refused(name: str) -> None:
    with pytest.raises(KithError) as refused:
        Unit(Path("/srv") / name, PYTHON)
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain", "/srv/plain"),
        ("a b", '"/srv/a b"'),
        ("50%h", '"/srv/50%%h"'),
        ('"', r'"/srv/\""'),
        ("\\n", r'"/srv/\\n"'),
        ("$HOME", '"/srv/$HOME"'),  # no variables are put in: see the colon
        ("怎么办", '"/srv/怎么办"'),
    ],
)
def test_the_command_keeps_its_words(name: str, written: str) -> None:
    command = settings(Unit(Path("/srv") / name, PYTHON))["ExecStart"]
    assert command == f":/usr/bin/python3 -P -m node.cli.main --data-dir {written} up"


@pytest.mark.parametrize("folder", ["/srv/kith", "/srv/" + ODD, "/srv/怎么办"])
@pytest.mark.parametrize("user", ["", "root"])
def test_systemd_finds_nothing_wrong(folder: str, user: str, tmp_path: Path) -> None:
    """`verify` reads the unit and starts nothing."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = Unit(Path(folder), PYTHON, user)
    path = tmp_path / unit.name
    path.write_text(unit.text, encoding="utf-8")
    scope = "--system" if user else "--user"
    command = ["systemd-analyze", scope, "--man=no", "--generators=no", "--recursive-errors=no", "verify", str(path)]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # Systems without the whole of systemd's own units complain of those; of ours there is nothing to say.
    assert unit.name not in done.stderr, done.stderr
