"""What the set-up scripts need from the system, and how they say so; standard library only.

A missing program ends a run with `Unmet`: one sentence, and the one command of this system that mends it. `Progress`
is a single line that rewrites itself on a terminal, and a plain line at most every ten seconds elsewhere.
"""

import os
import shutil
import sys
import time
from types import TracebackType

#: Seconds between two plain progress lines where the output is not a terminal.
PLAIN_LINE_EVERY_S = 10.0

#: What to install, by the package manager that is there. The first one found counts.
_MANAGERS: dict[str, dict[str, str]] = {
    "brew": {"command": "brew install", "compiler": "gcc", "venv": "python@3.13"},
    "apt-get": {"command": "apt-get install -y", "compiler": "build-essential", "venv": "{python}-venv"},
    "dnf": {"command": "dnf install -y", "compiler": "gcc-c++", "venv": "python3"},
    "pacman": {"command": "pacman -S --needed", "compiler": "base-devel", "venv": "python"},
    "zypper": {"command": "zypper install -y", "compiler": "gcc-c++", "venv": "python3"},
    "apk": {"command": "apk add", "compiler": "build-base", "venv": "python3"},
}


class Unmet(Exception):
    """The environment can not be made: what is wrong, and what mends it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def install_command(need: str) -> str:
    """The command that installs `need` ("compiler" or "venv") here."""
    if sys.platform == "darwin" and need == "compiler":
        return "xcode-select --install"
    for manager, words in _MANAGERS.items():
        if shutil.which(manager):
            python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            sudo = "" if manager == "brew" or os.geteuid() == 0 else "sudo "
            return f"{sudo}{words['command']} {words[need].format(python=python)}"
    return (
        f"install a {'C++ compiler' if need == 'compiler' else 'Python with the venv module'} with your system's tools"
    )


class Progress:
    """One line that says what is done now, how far it is and for how long. Use as a context manager."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._shown = 0.0
        self._length = 0

    def __enter__(self) -> "Progress":
        self.show("")
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.show("done" if kind is None else "stopped", force=True)
        if self._terminal:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def show(self, state: str, *, force: bool = False) -> None:
        """Say `state` beside the name and the seconds so far, where it is due."""
        now = time.monotonic()
        due = 0.1 if self._terminal else PLAIN_LINE_EVERY_S
        if not force and self._shown and now - self._shown < due:
            return
        self._shown = now
        seconds = int(now - self._begun)
        line = f"{self._what}: {state} " if state else f"{self._what} "
        line += f"({seconds // 60}:{seconds % 60:02d})" if seconds else ""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            line = line[:width]
            sys.stderr.write("\r" + line.ljust(min(self._length, width)))
            self._length = len(line)
        else:
            sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()
