"""The clock of the machines: seconds that also pass while the computer sleeps, and never go back."""

import time

#: Linux: CLOCK_BOOTTIME counts suspended time, so that an opened lid shows as a pause. Elsewhere the monotonic clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    return time.clock_gettime(_CLOCK)


def wall_clock_ms() -> int:
    return int(time.time() * 1000)
