"""Earlier releases to run beside this one, or to compare with it: their wheels lie in previous/.

What they need is in this environment.
"""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

from google.protobuf import descriptor_pb2

WHEELS = Path(__file__).parent / "previous"
#: The last release before this one: the newest wheel here. A new release's wheel, laid beside it, takes its place.
PREVIOUS = max(
    (path.name.split("-")[1] for path in WHEELS.glob("*.whl")),
    key=lambda version: tuple(int(part) for part in version.split(".")),
)


def wheel(version: str) -> Path:
    return WHEELS / f"kithmesh-{version}-py3-none-any.whl"


def unpacked(version: str, folder: Path) -> dict[str, str]:
    """The environment in which `node`, `mesh` and `solver` are those of that release, unpacked in `folder`."""
    with zipfile.ZipFile(wheel(version)) as content:
        content.extractall(folder)
    environment = {"PYTHONPATH": str(folder)}
    code = "import node, mesh, solver; print(node.__file__, mesh.__file__, solver.__file__)"
    command = [sys.executable, "-P", "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 3
    assert all(Path(file).is_relative_to(folder) for file in found)
    return environment


def contract(version: str) -> descriptor_pb2.FileDescriptorSet:
    """The proto/ of that release, by name of file, out of its generated code. That is read, not imported: one process
    holds one contract."""
    files = descriptor_pb2.FileDescriptorSet()
    with zipfile.ZipFile(wheel(version)) as content:
        for name in sorted(content.namelist()):
            if name.startswith("mesh/wire/") and name.endswith("_pb2.py"):
                files.file.append(_descriptor(content.read(name).decode()))
    return files


def _descriptor(generated: str) -> descriptor_pb2.FileDescriptorProto:
    """What a generated module hands to `AddSerializedFile`."""
    [serialized] = [
        call.args[0].value
        for call in ast.walk(ast.parse(generated))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "AddSerializedFile"
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, bytes)
    ]
    return descriptor_pb2.FileDescriptorProto.FromString(serialized)
