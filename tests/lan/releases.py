"""Earlier releases to run beside this one: their wheels lie in previous/, what they need is in this environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = Path(__file__).parent / "previous"


def unpacked(version: str, folder: Path) -> dict[str, str]:
    """The environment in which `node`, `mesh` and `solver` are those of that release, unpacked in `folder`."""
    with zipfile.ZipFile(WHEELS / f"kithmesh-{version}-py3-none-any.whl") as content:
        content.extractall(folder)
    environment = {"PYTHONPATH": str(folder)}
    code = "import node, mesh, solver; print(node.__file__, mesh.__file__, solver.__file__)"
    command = [sys.executable, "-P", "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 3
    assert all(Path(file).is_relative_to(folder) for file in found)
    return environment
