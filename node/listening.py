"""Taking what a node needs for itself: its folders, its lock, its port. Each failure says what to do.

Idea: one daemon a data directory, held by a lock on the pid file, which the kernel releases however the daemon ends.
The port is chosen once and kept in the data directory, so that a restarted node is found where it was. Whoever is
answered there has proved to be of the mesh; so a node in no mesh opens no port.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from node import interfaces as networks
from node.addresses import split_address, target
from node.errors import ExitCode, KithError
from node.files import is_there
from node.interfaces import Interface, Place, addresses_for, choose, is_loopback, resolve
from node.paths import NodePaths


def prepare_folders(paths: NodePaths) -> None:
    """Make the data directory and the 0700 run folder. Raises `KithError` where they can not be used."""
    try:
        os.fspath(paths.data_dir).encode()
    except UnicodeEncodeError as error:
        raise _unusable(paths, "its name is not UTF-8") from error
    try:
        if paths.data_dir.exists() and not paths.data_dir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
        paths.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in {paths.pid.parent, paths.run_dir}:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to somebody else")
            folder.chmod(0o700)
        probe = paths.data_dir / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _unusable(paths, error.strerror or str(error)) from error


def _unusable(paths: NodePaths, why: str) -> KithError:
    return KithError(
        "data-dir-unusable",
        f"the data directory {paths.data_dir} can not be used: {why}",
        "Make it writable, or choose another one with --data-dir.",
        ExitCode.CANNOT_START,
    )


class Lock:
    """Holds the data directory for this process. Raises `KithError` (`already-running`) on entry."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths
        self._descriptor = -1

    def __enter__(self) -> "Lock":
        descriptor = os.open(self._paths.pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise KithError(
                "already-running",
                f"a node runs already under {self._paths.data_dir} (pid {pid})",
                "Stop it with `kith down`, or give this one its own --data-dir.",
                ExitCode.CANNOT_START,
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        # A socket that a killed daemon left behind is nobody's now.
        with contextlib.suppress(FileNotFoundError):
            self._paths.socket.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the folder was deleted and made anew, the door there is another daemon's.
        if is_there(self._paths.pid, os.fstat(self._descriptor)):
            with contextlib.suppress(FileNotFoundError):
                self._paths.socket.unlink()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def where_to_listen(listen: str) -> tuple[str, int]:
    """Host and port of the setting; where it is empty: every address of this machine, now and later."""
    return address_of(listen) if listen else ("0.0.0.0", 0)


def require_loopback(listen: str) -> None:
    """A node in no mesh is seen by nobody. Raises `KithError` where it is told to be."""
    if listen and not is_loopback(host := address_of(listen)[0]):
        raise KithError(
            "not-in-a-mesh",
            f"{host} can be reached from other machines, and this node is in no mesh: it could not tell who calls",
            "Make a mesh with `kith init` or enter one with `kith join`; or leave out --listen to run alone.",
            ExitCode.CANNOT_START,
        )


@dataclass
class Bound:
    """Where the mesh service is bound, and the addresses that others find it at.

    All as of now: a machine may get another address or network while the node runs. Without any: those it had last.
    """

    host: str  # an address: names are looked up when it is bound
    port: int
    named: Sequence[str]  # interfaces
    _hosts: list[str] = field(default_factory=list)
    _interfaces: list[Interface] = field(default_factory=list)

    def addresses(self) -> list[tuple[str, int]]:
        with contextlib.suppress(KithError, OSError):  # an interface that was named is gone
            self._hosts = addresses_for(self.host, self.named) or self._hosts
        return [(host, self.port) for host in self._hosts]

    def place(self) -> Place:
        """The addresses, and the interfaces to speak multicast on; both as of one look."""
        with contextlib.suppress(KithError, OSError):
            present = networks.interfaces()
            self._hosts = addresses_for(self.host, self.named, present) or self._hosts
            self._interfaces = choose(self.named, self.host, present) or self._interfaces
        return self._hosts, self._interfaces


def bind(
    server: "grpc.aio.Server",
    credentials: grpc.ServerCredentials,
    listen: str,
    interfaces: Sequence[str],
    paths: NodePaths,
) -> Bound:
    """Bind the mesh service; others are told its addresses of these interfaces, or of all.

    Raises `KithError`: the port is taken, or not an address of this machine, or there is no such interface.
    """
    host, port = where_to_listen(listen)
    kept = paths.data_dir / "port"
    bound = 0
    if port == 0:
        with contextlib.suppress(OSError, ValueError):
            bound = _try(server, credentials, host, int(kept.read_text()))
    bound = bound or _try(server, credentials, host, port)
    if not bound:
        raise KithError(
            "port-taken",
            f"{target(host, port)} is taken or not an address of this machine",
            "Choose another one with --listen, or port 0 for any that is free.",
            ExitCode.CANNOT_START,
        )
    if port == 0:
        kept.write_text(f"{bound}\n")
    return Bound(str(resolve(host)), bound, interfaces)


def _try(server: "grpc.aio.Server", credentials: grpc.ServerCredentials, host: str, port: int) -> int:
    """The bound port, or 0."""
    try:
        bound: Any = server.add_secure_port(target(host, port), credentials)
    except RuntimeError:
        return 0
    return int(bound)


def address_of(text: str) -> tuple[str, int]:
    """Host and port of a setting. Raises `KithError` (`bad-address`)."""
    if (address := split_address(text)) is None:
        raise KithError(
            "bad-address", f"{text!r} is no HOST:PORT", "Write it like 127.0.0.1:7600 or [::1]:7600.", ExitCode.USAGE
        )
    return address
