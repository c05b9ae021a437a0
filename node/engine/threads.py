"""How many threads an engine gets: the cores it may use, shared with the other engines that run on this host.

Threads of ggml spin while they wait for each other. Two engines with two threads each on two cores were measured at 3
tokens/s together, against 154 with one thread each; so it is worth looking before asking for all cores.

Idea: an engine is a process that has ggml's library mapped: one of ours, or a llama-server beside us. Linux only, and
only processes of the same user can be seen; elsewhere this engine counts as the only one.

Does not: take threads back from engines that run already. They are named in the log, with the remedy.
"""

import os
from pathlib import Path

_LIBRARY = "libggml"


def cores() -> int:
    """Cores that this process may use; a container or cpuset often allows fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def other_engines(proc: Path = Path("/proc"), own_pid: int | None = None) -> int:
    """Processes beside this one that have the library mapped."""
    own = str(os.getpid() if own_pid is None else own_pid)
    found = 0
    for maps in proc.glob("[0-9]*/maps"):
        if maps.parent.name == own:
            continue
        try:
            found += _LIBRARY in maps.read_text(encoding="utf-8", errors="replace")
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found


def choose(wanted: int, cores: int, others: int) -> tuple[int, str]:
    """Threads to use, and what to warn of; empty: nothing.

    Args:
        wanted: what the user asked for; 0: choose.
        others: engines that run on this host already.
    """
    fair = max(1, cores // (1 + others))
    if not others or (wanted and wanted <= fair):
        return wanted or fair, ""
    many = f"{others} other engine{'s run' if others > 1 else ' runs'} on this host's {cores} cores"
    if wanted:
        return wanted, f"{many}: more than {fair} threads here make all of them slow; start it with --threads {fair}"
    return fair, f"{many}: this one takes {fair} of the threads; give --threads {fair} to the others as well"
