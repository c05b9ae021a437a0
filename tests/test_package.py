"""What a user installs: sdist → wheel → an empty environment → every module imports, and `kith` answers."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts import _llama

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGES = {"node", "mesh", "solver", "kithmesh.py"}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    # Nothing of this checkout may be found by accident.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from the sdist alone."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)  # sdist, then the wheel from it
    assert len(list(out.iterdir())) == 2
    return out


def test_sdist_holds_what_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for name in ("proto/mesh.proto", "scripts/test", "tests/conftest.py", "README.md", "LICENSE", "node/cli/main.py"):
        assert name in names


def test_wheel_holds_the_packages_alone(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        names = set(wheel.namelist())
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert {"node/py.typed", "mesh/py.typed", "solver/py.typed", "mesh/wire/mesh_pb2.py"} <= names


def test_install_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    llama = _llama.cached()
    if llama is None:
        pytest.skip("no wheel of llama-cpp-python in the cache: scripts/test makes one")
    if uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--python", sys.executable, venv)
        run(uv, "pip", "install", "--quiet", "--python", python, wheel, llama)
    else:
        run(sys.executable, "-m", "venv", venv)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, llama)

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert run(venv / "bin" / "kith", "--version", cwd=tmp_path).strip() == f"kith {version}"

    code = """
import importlib, importlib.metadata, sys
files = importlib.metadata.files("kithmesh") or []
names = sorted(str(f)[:-3].replace("/", ".").removesuffix(".__init__") for f in files if str(f).endswith(".py"))
names = [name for name in names if not name.endswith(".__main__")]
for name in names:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.prefix), module.__file__
print(len(names))
"""
    imported = int(run(python, "-P", "-W", "error", "-c", code, cwd=tmp_path))
    assert imported >= 60
