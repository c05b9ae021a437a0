"""llama-cpp-python, built once for this CPU and kept as a wheel outside the checkout; standard library only.

The package index has its source alone. What is built here: libllama and ggml with every instruction this CPU has; not
the vision library, the command-line tools, nor their helpers. The wheel serves all Python versions, so it is kept under
a key of version, flags and CPU: another machine that shares the cache folder never loads code its CPU lacks. Sources
and objects lie beside it while it is being made, so an interrupted build goes on where it was.

Source: llama-cpp-python's CMakeLists.txt and pyproject.toml (scikit-build-core), release 0.3.36.
"""

import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts._system import Progress, Unmet, install_command

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

CMAKE_INCLUDE = Path(__file__).with_name("llama-build.cmake")
_RECIPE = (CMAKE_INCLUDE, Path(__file__).with_name("llama-amx.h"))
FLAGS = ("-DLLAVA_BUILD=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF")

#: Memory that one compiler process may need for the largest of llama.cpp's sources.
COMPILER_BYTES = 1 << 30


def cache_dir() -> Path:
    """The folder of all wheels built for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kithmesh" / "wheels"


def cpu_features() -> str:
    """What decides which instructions `-march=native` may use, in words of the system."""
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        ).stdout.strip()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "CPU part", "CPU implementer", "isa")
    rows = {line for line in text.splitlines() if line.split("\t")[0].split(":")[0].strip() in wanted}
    return "\n".join(sorted(rows))


def key() -> str:
    """Names the wheel that this machine needs."""
    parts = [VERSION, SDIST_SHA256, *FLAGS, os.environ.get("CMAKE_ARGS", ""), *(path.read_text() for path in _RECIPE)]
    parts += [platform.system(), platform.machine(), *platform.libc_ver(), cpu_features()]
    return f"{VERSION}-{platform.machine()}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def cached() -> Path | None:
    """The finished wheel of this machine, if there is one."""
    found = sorted((cache_dir() / key()).glob("llama_cpp_python-*.whl"))
    return found[0] if found else None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` for this process; a second run waits and says for what. Gone with the process, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another run is {what}; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def run_logged(
    command: list[str],
    log: Path,
    on_line: Callable[[str], None],
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run `command`, its output to `log` and line by line to `on_line`. Raises `Unmet` with its last lines."""
    tail: list[str] = []
    with log.open("a", encoding="utf-8", errors="replace") as out:
        out.write(f"$ {shlex.join(command)}\n")
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=env, cwd=cwd, start_new_session=True,
        )  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                out.write(line)
                tail = [*tail[-14:], line.rstrip()[:300]]
                on_line(line)
            status = child.wait()
        except BaseException:
            _end_group(child)
            raise
    if status:
        raise Unmet("\n".join([*tail, "", f"This failed: {shlex.join(command)[:200]}"]), f"the whole log is {log}")


def _end_group(child: subprocess.Popen[str]) -> None:
    """End a child and all that it started: it leads a process group of its own."""
    for signal_number in (15, 9):
        try:
            os.killpg(child.pid, signal_number)
            child.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def has_compiler() -> bool:
    """Whether a C++ compiler is there."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


def wheel(python: Path) -> Path:
    """The wheel of this machine, built now where it is not there yet.

    Args:
        python: an interpreter that has pip.

    Raises `Unmet`: no compiler, no network, or the build failed.
    """
    if done := cached():
        return done
    if not has_compiler():
        raise Unmet("There is no C++ compiler here; llama.cpp is built for this CPU.", install_command("compiler"))
    home = cache_dir() / key()
    home.mkdir(parents=True, exist_ok=True)
    with locked(home, "building llama.cpp"):
        if done := cached():
            return done
        return _build(python, home)


def _build(python: Path, home: Path) -> Path:
    work = home / "building"
    work.mkdir(exist_ok=True)
    log = work / "log.txt"
    begun = time.monotonic()
    pip = [str(python), "-m", "pip"]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    with Progress("Building llama.cpp for this CPU, once (minutes)") as progress:
        source = work / f"llama_cpp_python-{VERSION}"
        if not source.exists():
            progress.show("fetching its source", force=True)
            wanted = work / "source.txt"
            wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
            fetch = ["download", "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"]
            run_logged([*pip, *fetch, *quiet, "-d", str(work), "-r", str(wanted)], log, lambda _: None)
            _unpack(next(work.glob(f"llama_cpp_python-{VERSION}.tar.gz")), source)
        progress.show("configuring", force=True)
        done = re.compile(r"\[\s*(\d+)(?:/(\d+)\]|%\])")

        def on_line(line: str) -> None:
            if found := done.search(line[:40]):
                percent = int(found[1]) if found[2] is None else 100 * int(found[1]) // int(found[2])
                progress.show(f"{percent} %")

        out = work / "wheel"
        shutil.rmtree(out, ignore_errors=True)
        env = os.environ | {
            "CMAKE_ARGS": " ".join([f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={CMAKE_INCLUDE}", *FLAGS])
            + " " + os.environ.get("CMAKE_ARGS", ""),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(_jobs()),
            "SKBUILD_BUILD_DIR": str(work / "objects"),
        }  # fmt: skip
        if shutil.which("ccache"):
            env |= {"CMAKE_C_COMPILER_LAUNCHER": "ccache", "CMAKE_CXX_COMPILER_LAUNCHER": "ccache"}
        run_logged([*pip, "wheel", "-v", "--no-deps", *quiet, "-w", str(out), str(source)], log, on_line, env)
    (home / "build_s.txt").write_text(f"{time.monotonic() - begun:.0f}\n")
    made = next(out.glob("*.whl"))
    finished = home / made.name
    made.replace(finished)
    shutil.rmtree(work, ignore_errors=True)
    return finished


def _unpack(archive: Path, source: Path) -> None:
    """Unpack beside and rename, so that `source` is there whole or not at all."""
    beside = source.with_suffix(".unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(beside, filter="data")
    (beside / source.name).replace(source)
    shutil.rmtree(beside)
    archive.unlink()


def _jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return cores
    return max(1, min(cores, memory // COMPILER_BYTES))
