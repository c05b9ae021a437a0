"""Everything that crosses the switch of a test LAN, as tshark(1) records and decodes it.

Idea: who listens in earnest uses such a tool, which knows three thousand protocols. What it says of every frame, in
words and in hex, is searched as one text.

Does not: decrypt; nobody gives it keys.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.lan_network import Network

LAST_WITHIN_S = 10.0


def why_not() -> str:
    """Why tshark can not be used here; "" where it can."""
    return "" if shutil.which("tshark") else "tshark is not installed (apt-get install tshark)"


@contextmanager
def recording(network: Network, file: Path, last: bytes) -> Iterator[None]:
    """Let tshark write all that crosses the switch within the block into `file`. `last`: what ends the block's traffic.

    What was sent is in the file a moment later, so at the end `last` is waited for.
    """
    # Sixteen megabytes for the kernel: two dozen processes of this test may run while dumpcap waits for a core.
    command = [*network.inside("net"), "tshark", "-n", "-B", "16", "-i", "any", "-w", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as recorder:
        assert recorder.stderr is not None
        try:
            said: list[str] = []
            for line in recorder.stderr:
                said.append(line)
                if "Capture started" in line:
                    break
            else:
                raise AssertionError(f"tshark does not record: {said}")
            yield
            ends = time.monotonic() + LAST_WITHIN_S
            while last not in file.read_bytes():
                assert time.monotonic() < ends, "tshark did not see the last frame"
                time.sleep(0.05)
        finally:
            recorder.terminate()
            _, rest = recorder.communicate(timeout=30)
    assert "dropped" not in rest, rest


def decoded(file: Path) -> str:
    """All that tshark can say of what was recorded, in lower case: every field of every frame."""
    return _tshark(file, "-V").lower()


def fields(file: Path, *names: str, only: str = "") -> list[list[str]]:
    """These fields of the frames that have at least one of them, or that the display filter `only` lets through."""
    arguments = ["-T", "fields", "-Y", only or " || ".join(names)]
    for name in names:
        arguments += ["-e", name]
    return [line.split("\t") for line in _tshark(file, *arguments).splitlines()]


def places_of(text: str, needle: bytes) -> list[str]:
    """Lines of `decoded` in which these bytes are said: as text, or in hex as tshark writes it."""
    forms = [needle.hex(), needle.hex(":")]
    if needle.isascii():
        forms.append(needle.decode().lower())
    found = []
    for form in forms:
        at = text.find(form)
        while at >= 0:
            end = text.find("\n", at)
            found.append(text[text.rfind("\n", 0, at) + 1 : end])
            at = text.find(form, end)
    return found


def _tshark(file: Path, *arguments: str) -> str:
    # What speaks TLS on a port of its own is found out by trying; nothing is taken for a protocol by its port alone.
    command = ["tshark", "-n", "-r", str(file), "-o", "tcp.try_heuristic_first:TRUE", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout
