"""What this machine can do for a model: cores, memory, how fast memory is read, and what power its CPU may draw.

Idea: writing a token reads every active weight once, so tokens a second are memory bandwidth over bytes. Bandwidth is
measured in a third of a second, by all cores at once, or worked out from a rate that a node measured.

Does not: know GPUs.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from node import gguf
from node.engine.threads import cores

MEASURE_SECONDS = 0.3
#: Larger than the caches of one core's share.
BLOCK_BYTES = 64 << 20
THREADS_MAX = 8
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Measured:
    """What a node's engine measured when it started."""

    model: str
    model_bytes: int
    parameters: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    active_share: float = 1.0  # of its weights: what one token uses


@dataclass(frozen=True)
class Machine:
    """Zeros: not known."""

    cores: int
    memory_bytes: int
    available_bytes: int
    read_bytes_per_s: float  # of memory, by all cores; 0 where a node measured a model instead
    watts_max: float  # the CPU's own long-term limit
    measured: Measured | None = None


def this_machine(measured: Measured | None = None) -> Machine:
    """Takes a third of a second where nothing was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = cores()
    return Machine(
        cores=usable,
        memory_bytes=memory,
        available_bytes=gguf.memory_available_bytes() or memory * 7 // 10,
        read_bytes_per_s=0.0 if measured is not None else read_rate(min(usable, THREADS_MAX)),
        watts_max=watts_max(),
        measured=measured,
    )


def read_rate(threads: int, seconds: float = MEASURE_SECONDS) -> float:
    """Bytes of memory that so many threads read in a second together."""
    import numpy as np

    blocks = [np.ones(BLOCK_BYTES // 8, dtype=np.uint64) for _ in range(threads)]

    def read(block: "np.ndarray[tuple[int], np.dtype[np.uint64]]") -> float:
        """By this thread's own time: what else runs on the machine now slows it less."""
        began, done = time.thread_time(), 0
        while time.perf_counter() < end:
            block.max()  # without the interpreter's lock
            done += block.nbytes
        return done / max(time.thread_time() - began, 1e-3)

    with ThreadPoolExecutor(threads) as pool:
        end = time.perf_counter() + seconds
        return sum(pool.map(read, blocks))


def watts_max(powercap: Path = POWERCAP) -> float:
    """The long-term power limits of all CPU packages together, as Linux tells them (RAPL); 0: it does not."""
    microwatts = 0
    for package in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") > 1:
            continue  # a part of a package
        try:
            if (package / "constraint_0_name").read_text("ascii").strip() == "long_term":
                microwatts += int((package / "constraint_0_power_limit_uw").read_text("ascii"))
        except (OSError, ValueError):
            continue
    return microwatts / 1e6
