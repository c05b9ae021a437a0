"""`kith service`: what it prints and refuses, on any machine. No test here speaks to a systemd that runs."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from node.cli import installing
from node.errors import ExitCode
from node.unit import MARK
from tests.node.cli.conftest import Kith


@pytest.fixture(autouse=True)
def no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no `systemctl` is found; units would be written under `tmp_path`."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(installing, "SYSTEM_UNITS", tmp_path / "system")


def there(kith: Kith, text: str) -> Path:
    """A file with this text where the unit would be."""
    path = Path(kith("service", "show", "--json").json["path"])
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_show_prints_the_unit_and_writes_nothing(kith: Kith, data_dir: Path, tmp_path: Path) -> None:
    shown = kith("service", "show")
    assert shown.code == ExitCode.OK
    assert shown.out.startswith(MARK)
    told = kith("service", "show", "--json").json
    assert told["text"] == shown.out
    assert told["command"] == [sys.executable, "-P", "-m", "node.cli.main", "--data-dir", str(data_dir), "up"]
    assert Path(told["path"]).name == told["unit"]
    assert Path(told["path"]).is_relative_to(tmp_path)
    assert told["user"] == ("root" if os.geteuid() == 0 else None)
    assert not list(tmp_path.rglob("*.service"))


def test_one_directory_has_one_unit_however_it_is_spelt(kith: Kith, data_dir: Path) -> None:
    data_dir.mkdir()
    plain = kith("service", "show").out
    assert kith("--data-dir", f"{data_dir}/../{data_dir.name}", "service", "show").out == plain
    assert kith("--data-dir", f"{data_dir}/", "service", "show").out == plain


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's service runs as somebody else")
def test_roots_service_runs_as_the_owner_of_the_directory(kith: Kith, data_dir: Path) -> None:
    assert "User=root\n" in kith("service", "show").out
    data_dir.mkdir()
    os.chown(data_dir, 54321, 54321)  # an owner without a name
    assert "User=54321\n" in kith("service", "show").out


def test_without_systemd_install_names_the_command_and_writes_nothing(
    kith: Kith, data_dir: Path, tmp_path: Path
) -> None:
    refused = kith("service", "install")
    assert refused.code == ExitCode.FAILED
    assert "there is no systemd" in refused.err
    assert f"-m node.cli.main --data-dir {data_dir} up" in refused.err
    assert not list(tmp_path.rglob("*.service"))


def test_wrong_settings_are_told_before_anything_else(kith: Kith, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "node.toml").write_text("slots = 0\n")
    refused = kith("service", "install")
    assert refused.code == ExitCode.USAGE
    assert "slots" in refused.err


def test_nothing_to_remove(kith: Kith) -> None:
    assert kith("service", "remove").code == ExitCode.NOT_FOUND


def test_a_file_of_somebody_else_is_left_alone(kith: Kith) -> None:
    path = there(kith, "[Unit]\n")
    for command in ("install", "remove"):
        refused = kith("service", command, "--json")
        assert refused.code != ExitCode.OK
    assert refused.json["error"]["code"] == "not-ours"
    assert path.read_text() == "[Unit]\n"


def test_a_unit_that_may_still_run_is_not_deleted_unstopped(kith: Kith) -> None:
    path = there(kith, f"{MARK}\n")
    assert kith("service", "remove", "--json").json["error"]["code"] == "no-systemd"
    assert path.exists()


def test_variables_that_do_not_count_for_the_service(
    kith: Kith, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.cli.settings import load_config

    for name in [name for name in os.environ if name.startswith("KITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KITH_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("KITH_DATA_DIR", str(data_dir))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    data_dir.mkdir()
    (data_dir / "node.toml").write_text('engine = "openai"\nengine_url = "http://127.0.0.1:1/v1"\n')
    assert installing._variables(load_config(data_dir, {}, {})) == ["KITH_LISTEN", "OPENAI_API_KEY"]
    (data_dir / "service.env").write_text("# ours\nKITH_LISTEN=127.0.0.1:0\n OPENAI_API_KEY = x\n")
    assert {"KITH_LISTEN", "OPENAI_API_KEY"} <= installing._variables_of(data_dir / "service.env")


@pytest.mark.slow
def test_the_command_of_the_unit_runs_a_node_that_down_ends_with_0(kith: Kith, data_dir: Path) -> None:
    """0 is what `Restart=on-failure` leaves alone; a daemon that was killed has another code."""
    from scripts.daemons import Daemon

    data_dir.mkdir()
    (data_dir / "node.toml").write_text('engine = "echo"\nlisten = "127.0.0.1:0"\nmdns = false\nthreads = 1\n')
    one = Daemon(data_dir)
    assert one.command() == kith("service", "show", "--json").json["command"]
    try:
        one.start()
        asyncio.run(one.ready(60.0))
        assert kith("down").code == ExitCode.OK
        assert one.process is not None
        assert one.process.wait(60) == 0
        one.start()
        asyncio.run(one.ready(60.0))
        one.kill()
        assert one.process.returncode not in (0, None)
    finally:
        one.end()
