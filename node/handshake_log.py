"""Why TLS handshakes failed, in the node's log: gRPC's core tells nobody but standard error.

Idea: who shows no certificate, or a wrong one, is refused inside gRPC's core, before any code of ours runs. The core
writes why to file descriptor 2. While a node runs, that descriptor is a pipe; a thread reads it, says what a failed
handshake was about in our words, once in a while for each reason, and passes on what is not gRPC's. Python's own
`sys.stderr` goes past it.

Threat: strangers must not fill the disk by failing, so each reason has one line a minute, and reasons are few.

Not guaranteed: from where. The core does not say it. The last words of a process that dies in C code may be lost.
"""

import contextlib
import os
import re
import sys
import threading
from types import TracebackType
from typing import TextIO

from node.logs import log
from node.once import Once

#: A reason that repeats is logged once in this time, seconds.
LOG_AGAIN_S = 60.0
#: Longest line that is looked at, bytes; and longest reason in words of the core.
LINE_BYTES_MAX = 4096
REASON_CHARS_MAX = 120
#: What the core calls a reason, and what we do.
REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
    "unable to get local issuer certificate": "the certificate is not of this mesh",
    "self-signed certificate": "the certificate is not of this mesh",
    "certificate signature failure": "the certificate is forged",
    "certificate has expired": "the certificate has expired",
    "certificate is not yet valid": "the certificate is not valid yet (whose clock is off?)",
    "WRONG_VERSION_NUMBER": "it was no TLS",
    "HTTP_REQUEST": "it was no TLS",
}
_CORE = re.compile(rb"^[IWE]\d{4} [\d:.]+ +\d+ [\w./+-]+:\d+\] ")
_FAILED = re.compile(r"Handshake failed with error (.*)")


class HandshakeLog:
    """Enter it before gRPC is imported, which is when its core reads what to say. Once in a process at a time."""

    def __init__(self) -> None:
        self._once = Once(LOG_AGAIN_S)
        self._verbosity = os.environ.get("GRPC_VERBOSITY")

    def __enter__(self) -> "HandshakeLog":
        os.environ["GRPC_VERBOSITY"] = "INFO"
        sys.stderr.flush()
        self._true = os.dup(2)
        self._stderr: TextIO = sys.stderr
        sys.stderr = open(self._true, "w", buffering=1, errors="replace", closefd=False)
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        self._thread = threading.Thread(target=self._read, args=(read,), name="grpc-handshake-log", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()
        sys.stderr = self._stderr
        os.dup2(self._true, 2)  # closes the last write end of the pipe, and so ends the thread
        self._thread.join(1.0)
        os.close(self._true)
        if self._verbosity is None:
            os.environ.pop("GRPC_VERBOSITY", None)
        else:
            os.environ["GRPC_VERBOSITY"] = self._verbosity

    def _read(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=LINE_BYTES_MAX) as lines:
            while line := lines.readline(LINE_BYTES_MAX):
                if not _CORE.match(line):
                    with contextlib.suppress(OSError):  # nobody reads it; who stopped here would stop the core
                        os.write(self._true, line)
                elif (said := words_of(line.decode(errors="replace"))) and self._once.due(said):
                    log("warning", f"a TLS handshake was refused: {said}")


def words_of(line: str) -> str:
    """Why a handshake failed, from a line of the core; empty for a line about something else."""
    found = _FAILED.search(line)
    if not found:
        return ""
    raw = found[1]
    for theirs, ours in REASONS.items():
        if theirs in raw:
            return ours
    raw = raw.rpartition("OPENSSL_internal:")[2]
    return "".join(c if c.isprintable() else " " for c in raw)[:REASON_CHARS_MAX]
