"""Telling the supervisor that started this process how it is: that it is ready, and that its event loop still turns.

Idea: systemd names a datagram socket in the environment, and how long it lets a node be silent. A node that nobody
supervises has neither, and every call here does nothing.

Does not: say that the node stops. From then on systemd would count its own time limit, and `kith down --drain` has one
of its own. Nor fail: a supervisor that does not listen is no reason to end.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

#: How often the supervisor hears of the event loop within the time that it waits for it.
PINGS = 4


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor `state`, as in "READY=1". Never blocks."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux' abstract names
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.setblocking(False)
        to.sendto(state.encode(), address)


def patience_s(environment: Mapping[str, str] = os.environ) -> float:
    """How long the supervisor lets this process be silent, seconds; 0: it does not watch it."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # meant for the process that started this one
    try:
        return max(0, int(environment.get("WATCHDOG_USEC", "0"))) / 1e6
    except ValueError:
        return 0.0


async def keep_alive(environment: Mapping[str, str] = os.environ) -> None:
    """Say from the event loop that it turns, until cancelled. Ends at once where nobody watches."""
    within_s = patience_s(environment)
    while within_s:
        notify("WATCHDOG=1", environment)
        await asyncio.sleep(within_s / PINGS)
