"""`kith service`: systemd starts the node at boot and again after a crash.

Idea: who installs says who runs it. A user gets a unit of the own systemd, which runs as that user from boot on where
systemd may let users linger; root gets a unit of the machine's, which runs as the owner of the data directory. What the
unit says is node/unit.py's matter; here it is written, enabled, started, and taken back.

Does not: touch a file that it did not write, nor a node that somebody started by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from node.cli import output, service, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from node.config import NodeConfig
    from node.unit import Unit

#: Where the machine's systemd looks for units of its administrator.
SYSTEM_UNITS = Path("/etc/systemd/system")

group = typer.Typer(help="Start the node at boot, by systemd.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="service")


@group.command("install")
def install(ctx: typer.Context, as_json: session.Json = False) -> None:
    """Have systemd start the node now, at boot and after a crash.

    Settings are those of DIR/node.toml: kith config show prints them. As root the node becomes a service of the
    machine and runs as the owner of DIR; otherwise one of yours.
    """
    from node.cli.settings import load_config
    from node.files import write_atomically

    unit = _unit(ctx)
    path = unit_path(unit)
    config = load_config(unit.data_dir, {}, {})
    _require_systemd(unit)
    before = _ours(path)
    if service.locked(unit.data_dir) and not _has_process(unit):
        raise KithError(
            "already-running",
            f"a node runs under {unit.data_dir}, and systemd did not start it",
            "Stop it with `kith down`, then try again.",
            ExitCode.CANNOT_START,
        )
    changed = before != unit.text
    if changed:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, unit.text.encode(), 0o644)
        except OSError as error:
            raise _not_written(path, error) from error
        _must(unit, "daemon-reload")
    _must(unit, "enable", "--quiet", unit.name)
    if not as_json:
        output.note(f"starting {unit.name}")
    # A unit that was written anew counts for a node that runs, too.
    if _systemctl(unit, "restart" if changed else "start", unit.name).returncode != 0:
        raise KithError(
            "not-started",
            f"{unit.name} is installed, and the node did not start",
            f"See why: {_shown(unit, 'journalctl')} -n 20 -u {unit.name}; it is tried again and again, until "
            "`kith service remove`.",
            ExitCode.CANNOT_START,
        )
    at_boot = bool(unit.user) or _lingers()
    if as_json:
        output.emit(_shape(unit, path) | {"changed": changed, "at_boot": at_boot})
        return
    at = f"kith --data-dir {shlex.quote(str(unit.data_dir))}"
    print(f"{output.bold('installed')}  {unit.name}" + ("" if changed else ", as it was"))
    print(f"  unit     {path}")
    print(f"  runs as  {unit.user or 'you'}")
    print(f"  starts   {'at boot' if at_boot else 'when you log in'}, and after a crash")
    print(f"  stop     {at} down, until the next boot; start: {_shown(unit, 'systemctl')} start {unit.name}")
    print(f"  remove   {at} service remove")
    for warning in _warnings(unit, config, at_boot):
        print(f"  warning  {warning}")


@group.command("remove")
def remove(ctx: typer.Context, as_json: session.Json = False) -> None:
    """Stop the service and take it away. The data directory stays."""
    unit = _unit(ctx)
    path = unit_path(unit)
    if _ours(path) is None:
        raise KithError(
            "not-installed",
            f"there is no service for {unit.data_dir}" + ("" if unit.user else " of yours"),
            "`kith service install` makes one. Root's are not seen by others, nor yours by root.",
            ExitCode.NOT_FOUND,
        )
    _require_systemd(unit)
    _must(unit, "disable", "--quiet", "--now", unit.name)
    try:
        path.unlink()
    except OSError as error:
        raise _not_written(path, error) from error
    _must(unit, "daemon-reload")
    _systemctl(unit, "reset-failed", unit.name)  # fails where there is nothing to forget
    if as_json:
        output.emit({"removed": unit.name})
    else:
        print(f"removed {unit.name}; what the node keeps is still under {unit.data_dir}")


@group.command("show")
def show(ctx: typer.Context, as_json: session.Json = False) -> None:
    """Print the unit that install would write, and write nothing."""
    unit = _unit(ctx)
    if as_json:
        output.emit(_shape(unit, unit_path(unit)) | {"text": unit.text})
    else:
        print(unit.text, end="")


def unit_path(unit: Unit) -> Path:
    """Where the unit is, or would be."""
    if unit.user:
        return SYSTEM_UNITS / unit.name
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "systemd" / "user" / unit.name


def _unit(ctx: typer.Context) -> Unit:
    from node.unit import Unit

    folder = session.data_dir(ctx)
    if ".." in folder.parts:
        folder = folder.resolve()  # the same directory, the same unit
    return Unit(folder, Path(sys.executable), _owner(folder) if os.geteuid() == 0 else "")


def _owner(folder: Path) -> str:
    """Whom the node runs as where root installs it: the owner of the folder; root where it is not there yet."""
    import pwd

    try:
        number = folder.stat().st_uid
    except OSError:
        number = 0
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _shape(unit: Unit, path: Path) -> dict[str, object]:
    return {"unit": unit.name, "path": str(path), "user": unit.user or None, "command": unit.command}


def _ours(path: Path) -> str | None:
    """What is written at `path`; None: nothing. Raises `KithError` where it is not ours."""
    from node.unit import MARK

    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _not_written(path, error) from error
    if not text.startswith(MARK):
        raise KithError("not-ours", f"{path} was not written by kith service install", "Move it away, then try again.")
    return text


def _not_written(path: Path, error: OSError) -> KithError:
    return KithError("not-written", f"{path}: {error.strerror or error}", "Make its folder yours, then try again.")


def _require_systemd(unit: Unit) -> None:
    """Raises `KithError` where no systemd answers that could run the node."""
    if shutil.which("systemctl") is None:
        raise KithError(
            "no-systemd",
            "there is no systemd on this machine",
            f"Have what starts services here run this, and again when it does not end with 0: "
            f"{shlex.join(unit.command)}",
        )
    asked = _systemctl(unit, "show", "--property=Version")
    if asked.returncode == 0:
        return
    said = output.one_line(asked.stderr, 200)
    if unit.user:
        remedy = f"Have what starts services here run this as {unit.user}: {shlex.join(unit.command)}"
        raise KithError("no-systemd", f"systemd does not run this machine: {said}", remedy)
    raise KithError(
        "no-systemd",
        f"no systemd of yours answers: {said}",
        "Log in as this user, by ssh or at the machine (su and sudo open no session); or have root install a service "
        f"that runs as you: sudo {shlex.quote(sys.executable)} -P -m node.cli.main --data-dir "
        f"{shlex.quote(str(unit.data_dir))} service install",
    )


def _systemctl(unit: Unit, *words: str) -> subprocess.CompletedProcess[str]:
    scope = [] if unit.user else ["--user"]
    return _asked("systemctl", *scope, "--no-ask-password", *words)


def _has_process(unit: Unit) -> bool:
    """Whether a process that systemd started for this unit lives, be it ready or not."""
    asked = _systemctl(unit, "show", "--property=MainPID", "--value", unit.name)
    return asked.stdout.strip() not in ("", "0")


def _must(unit: Unit, *words: str) -> None:
    """Raises `KithError` with systemd's own words."""
    done = _systemctl(unit, *words)
    if done.returncode != 0:
        said = output.one_line(done.stderr, 300) or f"exit code {done.returncode}"
        raise KithError(
            "systemd-failed", f"systemctl {words[0]}: {said}", f"Try it: {_shown(unit, 'systemctl')} status {unit.name}"
        )


def _shown(unit: Unit, command: str) -> str:
    """`command` as people type it for this unit."""
    return command if unit.user else f"{command} --user"


def _lingers() -> bool:
    """Have this user's systemd start at boot, not at login; whether it does now. Most systems let a user ask so."""
    enabled = _loginctl("enable-linger").returncode == 0
    return enabled or _loginctl("show-user", "--property=Linger", "--value", _me()).stdout.strip() == "yes"


def _loginctl(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return _asked("loginctl", "--no-ask-password", *words)
    except OSError as error:  # systemd without logind
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _asked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _warnings(unit: Unit, config: NodeConfig, at_boot: bool) -> list[str]:
    """What its owner may not expect of the service, each with its remedy."""
    from node.paths import NodePaths

    paths, warnings = NodePaths(unit.data_dir), []
    if not at_boot:
        warnings.append(f"it ends when you log out, unless root allows it: loginctl enable-linger {_me()}")
    if not paths.mesh.exists():
        warnings.append("it is in no mesh, so it runs alone: kith down, kith init or kith join, then start it again")
    if unset := sorted(set(_variables(config)) - _variables_of(paths.variables)):
        warnings.append(f"not for the service: {', '.join(unset)}; it reads {paths.variables}, NAME=VALUE a line")
    return warnings


def _variables(config: NodeConfig) -> list[str]:
    """Variables of this shell that would count for `kith up`."""
    ours = [name for name in os.environ if name.startswith("KITH_") and name not in ("KITH_DATA_DIR", "KITH_DEBUG")]
    key = config.engine_key_env
    return [*ours, key] if config.engine == "openai" and key in os.environ else ours


def _variables_of(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {line.partition("=")[0].strip() for line in lines}


def _me() -> str:
    import getpass

    return getpass.getuser()
