"""Tests of node/detached.py."""

import asyncio
import subprocess
import sys
import threading

import pytest

from node.detached import detached

HANGS = """
import asyncio, threading
from node.detached import detached

async def main():
    work = asyncio.ensure_future(detached(threading.Event().wait, "hangs", within_s=0.1))
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

asyncio.run(main())
"""


async def test_what_it_returns_and_raises() -> None:
    assert await detached(lambda: 7, "seven") == 7
    with pytest.raises(ZeroDivisionError):
        await detached(lambda: 1 // 0, "error")


async def test_who_is_cancelled_stops_it_and_waits_no_longer_than_said() -> None:
    begun, stopped, go_on = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        raise ValueError("nobody hears it")

    for stop in (stopped.set, go_on.set):  # it goes on in spite of it; it ends by it
        running = asyncio.create_task(detached(work, "work", stop, within_s=0.05))
        await begun.wait()
        begun.clear()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert stopped.is_set()


def test_a_process_ends_over_it() -> None:
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=20)
