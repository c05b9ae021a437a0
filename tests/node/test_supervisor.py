"""What a supervisor hears of a node: from the functions alone, and from a real daemon."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from node.supervisor import keep_alive, notify, patience_s

if TYPE_CHECKING:
    from scripts.daemons import Daemon

WITHIN_S = 60.0


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd's, bound at `tmp_path`/notify."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(WITHIN_S)
        yield heard


def test_a_state_reaches_the_socket_that_is_named(supervisor: socket.socket) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": supervisor.getsockname()})
    assert supervisor.recv(100) == b"READY=1"


def test_an_abstract_name_is_one_too() -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as heard:
        try:
            heard.bind("")  # Linux chooses an abstract name
        except OSError as error:
            pytest.skip(f"no abstract names here: {error}")
        heard.settimeout(WITHIN_S)
        name = heard.getsockname()
        assert isinstance(name, bytes)
        notify("READY=1", {"NOTIFY_SOCKET": "@" + name[1:].decode()})
        assert heard.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:9999", "relative"])
def test_without_a_supervisor_that_listens_nothing_happens(address: str) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": address})


def test_a_supervisor_that_reads_nothing_holds_nobody_up(supervisor: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": supervisor.getsockname()}
    for number in range(20_000):  # many more than its queue takes
        notify(f"STATUS={number}", environment)
    assert supervisor.recv(100) == b"STATUS=0"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-5"}, 0.0),
    ],
)
def test_the_watch_is_for_this_process_only(environment: dict[str, str], seconds: float) -> None:
    assert patience_s(environment) == seconds


async def test_without_a_watch_there_is_nothing_to_keep_up() -> None:
    async with asyncio.timeout(WITHIN_S):
        await keep_alive({})


async def test_a_blocked_event_loop_is_silent(supervisor: socket.socket) -> None:
    supervisor.setblocking(False)
    environment = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "4000"}
    pings = asyncio.create_task(keep_alive(environment))

    async def ping() -> bytes:
        async with asyncio.timeout(WITHIN_S):
            return await asyncio.get_running_loop().sock_recv(supervisor, 100)

    assert [await ping() for _ in range(3)] == [b"WATCHDOG=1"] * 3
    while True:  # until none is on its way
        try:
            supervisor.recv(100)
        except BlockingIOError:
            break
    time.sleep(0.1)  # noqa: ASYNC251 - blocks the loop for 25 times what the supervisor waits
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)
    assert await ping() == b"WATCHDOG=1"
    pings.cancel()


@pytest.mark.slow
def test_a_daemon_tells_when_it_is_ready_and_that_it_lives(
    daemon: Callable[..., Daemon], supervisor: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "400000"}
    one = daemon(environment=environment)
    heard: list[bytes] = []
    while b"READY=1" not in heard:
        heard.append(supervisor.recv(100))
    # Its doors are open: whoever starts after it may ask it.
    assert asyncio.run(one.status()).pid == one.pid
    assert set(heard) <= {b"READY=1", b"WATCHDOG=1"}
    after = [supervisor.recv(100) for _ in range(20)]
    assert set(after) == {b"WATCHDOG=1"}
    one.end()
