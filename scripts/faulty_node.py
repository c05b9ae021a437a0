"""`kith`, with two faults that can not be brought about from outside: a blocked event loop and a jump of the clock.

    SIGUSR1   the thread of the event loop sleeps for KITH_BLOCK_S seconds (5): nothing is answered, while the process,
              its other threads and its kernel go on as ever
    SIGUSR2   the wall clock jumps by KITH_JUMP_S seconds (3600); from the start it is KITH_SHIFT_S seconds (0) off

Run in place of the module `node.cli.main`. The node itself is untouched: what is replaced is `time.time` for callers in
the package `node`, and Python runs a signal's handler in the main thread, between two steps of whatever the loop does.

Not shifted: the wall clock of libraries. gRPC turns a time-out into a wall-clock time and back into a monotonic one
with the kernel's clock of that moment, so a jump of the true clock cancels out there; a shift of one side would not.
"""

import os
import signal
import sys
import time
from types import FrameType

from node.cli.main import main

#: How to run it: what goes between the interpreter's options and the arguments of `kith`.
ENTRY = (__file__,)
BLOCK_S = float(os.environ.get("KITH_BLOCK_S", "5"))
JUMP_S = float(os.environ.get("KITH_JUMP_S", "3600"))

_wall_clock = time.time
_shift_s = float(os.environ.get("KITH_SHIFT_S", "0"))


def _block(_: int, __: FrameType | None) -> None:
    time.sleep(BLOCK_S)


def _jump(_: int, __: FrameType | None) -> None:
    global _shift_s
    _shift_s += JUMP_S


def _shifted() -> float:
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return _wall_clock() + (_shift_s if caller.startswith("node.") else 0.0)


if __name__ == "__main__":
    time.time = _shifted
    signal.signal(signal.SIGUSR1, _block)
    signal.signal(signal.SIGUSR2, _jump)
    main()
