"""Makes the private environment of a checkout, and finds it made the next time; standard library only.

    PYTHONPATH=. python3 -P -m scripts._env --venv .venv --kind run|dev

The environment holds the project, editable, with its dependencies ("run"), and the dev group beside them ("dev", which
serves "run" too). A stamp inside says what it was made from. It is written last and removed first, and an environment
of ours without a valid stamp is made again from nothing: one that was interrupted is never taken as whole. uv is used
where it is there, pip elsewhere. A lock on the checkout keeps parallel runs apart.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from scripts import _llama
from scripts._system import Progress, Unmet, install_command

ROOT = Path(__file__).resolve().parent.parent
MARK = "kithmesh-environment.json"


def wanted_stamp(kind: str) -> dict[str, str]:
    """What an environment made now is made from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = {name: project.get(name) for name in ("build-system", "project", "dependency-groups")}
    parts["hatch"] = project.get("tool", {}).get("hatch")
    return {
        "kind": kind,
        "project": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "python": f"{os.path.realpath(sys.executable)} {sys.version_info[0]}.{sys.version_info[1]}",
        "root": str(ROOT),
        "llama": _llama.key(),
        "engine": engine_for(kind),
    }


def engine_for(kind: str) -> str:
    """The engine that an environment gets: the one built for this CPU, or without a compiler the ready-made one.

    Developing takes a compiler: most tests of engines are about the one that is built. The ready-made wheels need
    glibc or macOS; elsewhere a compiler is asked for.
    """
    wanted = os.environ.get("KITH_ENGINE", "")
    if kind == "run" and wanted == "xllamacpp":
        return wanted
    buildable = _llama.cached() is not None or _llama.has_compiler()
    return "llama" if kind == "dev" or wanted == "llama" or buildable or not ready_made_runs() else "xllamacpp"


def ready_made_runs() -> bool:
    """Whether wheels of xllamacpp fit this system."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return machine == "arm64"
    return platform.libc_ver()[0] == "glibc" and machine in ("x86_64", "amd64", "aarch64", "arm64")


def serves(venv: Path, wanted: dict[str, str]) -> bool:
    """True when the environment is whole and made from what is wanted."""
    try:
        found = json.loads((venv / MARK).read_text())
    except (OSError, ValueError):
        return False
    same = all(found.get(name) == value for name, value in wanted.items() if name != "kind")
    return same and found.get("kind") in (wanted["kind"], "dev") and (venv / "bin" / "python").exists()


def make(venv: Path, wanted: dict[str, str]) -> None:
    """Make the environment from nothing, or bring one that was whole up to date."""
    mark = venv / MARK
    if venv.exists() and not mark.exists() and any(venv.iterdir()):
        raise Unmet(f"{venv} was not made by these scripts.", f"rm -r {venv}, or name another place: KITH_VENV=DIR")
    try:
        before = json.loads(mark.read_text())
    except (OSError, ValueError):
        before = {}
    upgrade = all(before.get(name) == wanted[name] for name in ("python", "root"))
    if upgrade and before["kind"] == "dev":
        wanted = wanted | {"kind": "dev"}
    if not upgrade:
        shutil.rmtree(venv, ignore_errors=True)
        venv.mkdir(parents=True, exist_ok=True)
    mark.write_text("{}")
    log = venv / "setup.log"
    log.unlink(missing_ok=True)
    python = venv / "bin" / "python"
    uv = shutil.which("uv")
    if not upgrade:
        _create(venv, uv, log)
    if wanted["engine"] == "xllamacpp":
        if not _llama.has_compiler():
            print(
                "There is no C++ compiler here, so the ready-made engine xllamacpp is taken: slower on most CPUs.\n"
                f"→ for the one built for this CPU: {install_command('compiler')}, and run this again",
                file=sys.stderr,
            )
        requirements = ["-e", f"{ROOT}[xllamacpp]"]
    else:
        requirements = ["-e", str(ROOT), str(_llama.wheel(python))]
    if wanted["kind"] == "dev":
        requirements += _dev_group()
    with Progress("Installing packages") as progress:
        if uv:
            command = [uv, "pip", "install", "--python", str(python), *requirements]
        else:
            options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
            command = [str(python), "-m", "pip", "install", *options, *requirements]
        collected: list[str] = []

        def on_line(line: str) -> None:
            if found := re.match(r"\s*Collecting ([\w.-]+)", line):
                collected.append(found[1])
                progress.show(f"{len(collected)} found, {found[1]}")
            elif line.startswith("Installing collected"):
                progress.show(f"unpacking {len(collected)}")

        _llama.run_logged(command, log, on_line, cwd=ROOT)
    beside = mark.with_suffix(".new")
    beside.write_text(json.dumps(wanted, indent=1))
    beside.replace(mark)


def _create(venv: Path, uv: str | None, log: Path) -> None:
    with Progress(f"Making {venv.name}"):
        if uv:
            command = [uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable, str(venv)]
        else:
            probe = subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True, check=False)
            if probe.returncode:
                raise Unmet(f"{sys.executable} has no venv module.", install_command("venv"))
            command = [sys.executable, "-m", "venv", str(venv)]
        _llama.run_logged(command, log, lambda _: None)


def _dev_group() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["dependency-groups"]["dev"])


def main() -> int:
    options = argparse.ArgumentParser(description="Make or find the environment of this checkout.")
    options.add_argument("--venv", type=Path, default=ROOT / ".venv")
    options.add_argument("--kind", choices=["run", "dev"], default="run")
    given = options.parse_args()
    venv: Path = given.venv.absolute()
    try:
        wanted = wanted_stamp(given.kind)
        if serves(venv, wanted):
            return 0
        with _llama.locked(ROOT, "making the environment"):
            if not serves(venv, wanted):
                make(venv, wanted)
    except Unmet as unmet:
        print(f"{unmet}\n→ {unmet.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; the next run goes on from here.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"The environment can not be made: {error}\n→ mend that and run again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
