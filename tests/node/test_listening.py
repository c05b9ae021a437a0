"""What a node takes for itself: its folder, alone; its port; and which addresses it tells of itself while it runs."""

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
import tempfile
from pathlib import Path

import grpc.aio
import pytest

from node import interfaces
from node.credentials import Credentials
from node.errors import KithError
from node.interfaces import Interface
from node.listening import Bound, Lock, bind, prepare_folders
from node.paths import NodePaths
from scripts.throwaway import ThrowawayMesh


def lan(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """This machine is on a LAN with these addresses."""
    here = [Interface("eth0", 2, tuple(ipaddress.ip_address(address) for address in addresses))]
    monkeypatch.setattr(interfaces, "interfaces", lambda: here)


def test_a_new_lease_is_told_and_no_network_leaves_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.1")
    bound = Bound("0.0.0.0", 7600, ())
    assert bound.addresses() == [("10.77.0.1", 7600)]
    lan(monkeypatch, "10.77.0.99")
    assert bound.addresses() == [("10.77.0.99", 7600)]
    lan(monkeypatch)
    assert bound.addresses() == [("10.77.0.99", 7600)]


LO = Interface("lo", 1, (ipaddress.ip_address("127.0.0.1"),))


async def test_who_starts_before_its_network_is_there_is_reached_once_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a power cut a board is up before the access point is."""
    down = Interface("eth0", 2, (), up=False)
    monkeypatch.setattr(interfaces, "interfaces", lambda: [LO, down])
    server = grpc.aio.server()
    credentials = Credentials(await asyncio.to_thread(ThrowawayMesh().enrol, tmp_path / "node"))
    bound = bind(server, credentials.server(), "", (), NodePaths(tmp_path))
    await server.stop(None)
    assert bound.host == "0.0.0.0", "it listens on what it gets later too"
    assert bound.addresses() == [("127.0.0.1", bound.port)]
    assert bound.place()[1] == [LO], "nodes of this machine find each other meanwhile"
    eth = Interface("eth0", 2, (ipaddress.ip_address("10.77.0.1"),))
    monkeypatch.setattr(interfaces, "interfaces", lambda: [LO, eth])
    assert bound.place() == (["10.77.0.1"], [eth])
    monkeypatch.setattr(interfaces, "interfaces", lambda: [LO, down])
    assert bound.place() == (["127.0.0.1"], [LO])


def test_an_interface_that_was_named_by_its_address_and_has_another_now(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.1")
    bound = Bound("0.0.0.0", 7600, ("10.77.0.1",))
    assert bound.addresses() == [("10.77.0.1", 7600)]
    lan(monkeypatch, "10.77.0.99")
    assert bound.addresses() == [("10.77.0.1", 7600)], "nothing better is known"


async def test_a_name_is_looked_up_once_and_not_at_each_hello(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The resolver may take seconds, and hellos are said on the event loop."""
    server = grpc.aio.server()
    credentials = Credentials(await asyncio.to_thread(ThrowawayMesh().enrol, tmp_path / "node"))
    bound = bind(server, credentials.server(), "localhost:0", (), NodePaths(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the resolver was asked"))
    [(host, port)] = bound.addresses()
    assert ipaddress.ip_address(host).is_loopback
    assert port == bound.port > 0
    await server.stop(None)


def test_the_interfaces_are_looked_at_once_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    eth = Interface("eth0", 2, (ipaddress.ip_address("10.77.0.1"),))
    looks = 0

    def look() -> list[Interface]:
        nonlocal looks
        looks += 1
        return [LO, eth]

    monkeypatch.setattr(interfaces, "interfaces", look)
    assert Bound("0.0.0.0", 7600, ()).place() == (["10.77.0.1"], [eth])
    assert looks == 1


def test_a_data_directory_whose_name_is_no_text_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(KithError, match="its name is not UTF-8") as caught:
        prepare_folders(NodePaths(tmp_path / os.fsdecode(b"caf\xe9")))
    assert caught.value.code == "data-dir-unusable"


def test_one_daemon_a_data_directory_by_whatever_path(tmp_path: Path) -> None:
    """The socket of a long path lies elsewhere; the lock does not."""
    folder = tmp_path / ("x" * 120)
    short = Path(tempfile.mkdtemp()) / "s"
    short.symlink_to(folder)
    long_paths, short_paths = NodePaths(folder), NodePaths(short)
    prepare_folders(long_paths)
    prepare_folders(short_paths)
    assert long_paths.socket.parent.resolve() != short_paths.socket.parent.resolve()
    try:
        with Lock(long_paths), pytest.raises(KithError) as caught, Lock(short_paths):
            pass
        assert caught.value.code == "already-running"
        assert f"pid {os.getpid()}" in caught.value.message
    finally:
        shutil.rmtree(long_paths.run_dir)
        shutil.rmtree(short.parent)


def test_who_ends_leaves_the_door_of_who_came_after_it(tmp_path: Path) -> None:
    """A data directory was deleted under a daemon, and another one was started there."""
    paths = NodePaths(tmp_path)
    prepare_folders(paths)
    with contextlib.ExitStack() as second, socket.socket(socket.AF_UNIX) as door:
        with Lock(paths):
            shutil.rmtree(paths.run_dir)
            prepare_folders(paths)
            second.enter_context(Lock(paths))
            door.bind(str(paths.socket))
        assert paths.socket.exists()
    assert not paths.socket.exists()


def test_where_it_listens_on_one_address_only_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lan(monkeypatch, "10.77.0.99")
    assert Bound("10.77.0.1", 7600, ()).addresses() == [("10.77.0.1", 7600)]
