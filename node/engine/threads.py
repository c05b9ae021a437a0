"""How many threads an engine gets: the cores it may use, shared with the other engines that run on this host.

Threads of ggml spin while they wait for each other. Two engines with two threads each on two cores were measured at 3
tokens/s together, against 154 with one thread each; so it is worth looking before asking for all cores.

Idea: an engine is a process that has ggml's library mapped, or that of xllamacpp, which has ggml inside; or whose
program is known to be one where ggml may be linked in: a llama-server, or a runner of ollama beside us.

Linux only; elsewhere this engine counts as the only one. Not seen: processes of other users and containers, programs of
other names that have ggml linked in, engines without ggml, and limits on CPU time (a quota), which are no cores.

Does not: take threads back from engines that run already. They are named in the log, with the remedy.
"""

import os
import re
import sys
from pathlib import Path

#: A mapped file whose own name is the library's, whatever the folders are called.
_LIBRARY = re.compile(r"/(libggml|xllamacpp)[^/\n]*\.so[^/\n]*$", re.MULTILINE)
_DELETED = " (deleted)"  # after the name of a program that was replaced since


def take(wanted: int) -> int:
    """Threads for the engine that starts in this process; what is amiss is said on stderr, which the node logs.

    Args:
        wanted: what the user asked for; 0: choose.
    """
    threads, warning = choose(wanted, cores(), other_engines())
    if warning:
        print(warning, file=sys.stderr, flush=True)
    return threads


def cores() -> int:
    """Cores that this process may use; a container or cpuset often allows fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def other_engines(proc: Path = Path("/proc"), own_pid: int | None = None) -> int:
    """Processes beside this one that are engines."""
    own = str(os.getpid() if own_pid is None else own_pid)
    return sum(process.name != own and is_engine(process) for process in proc.glob("[0-9]*"))


def is_engine(process: Path) -> bool:
    """Whether the process with this folder in /proc is an engine; not where it is gone, or somebody else's."""
    try:
        if _LIBRARY.search((process / "maps").read_text(encoding="utf-8", errors="replace")):
            return True
        program = (process / "exe").readlink().name.removesuffix(_DELETED)
        if program == "ollama":  # its server waits, and starts one of these for each model
            return (process / "cmdline").read_bytes().split(b"\0")[1:2] == [b"runner"]
    except OSError:
        return False
    return program == "llama-server"


def choose(wanted: int, cores: int, others: int) -> tuple[int, str]:
    """Threads to use, and what to warn of; empty: nothing.

    Args:
        wanted: what the user asked for; 0: choose.
        others: engines that run on this host already.
    """
    fair = max(1, cores // (1 + others))
    if wanted and wanted <= fair:
        return wanted, ""
    if not others:
        if not wanted:
            return fair, ""
        had = f"this engine may use {cores} core{'s' if cores > 1 else ''}"
        return wanted, f"{had}: more than {fair} threads make it slow; start it with --threads {fair}"
    many = f"{others} other engine{'s run' if others > 1 else ' runs'} on this host's {cores} cores"
    if wanted:
        return wanted, f"{many}: more than {fair} threads here make all of them slow; start it with --threads {fair}"
    return fair, f"{many}: this one takes {fair} of the threads; give --threads {fair} to the others as well"
