"""Daemons on the hosts of a `lan_network.Network`, and what can happen to a host: killed, frozen, cut off, out of disk.

A run keeps all it makes in one folder, /tmp/kith-lan-RUN: a state file (hosts, pids, options), data directories and
outputs. So another process can take the run over, freeze a host of it, and take everything down, also after the process
that started it was killed. `Lan` is both: `Lan.create` makes a run, `Lan.find` takes one over.
"""

import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from node.errors import ExitCode, KithError
from scripts.daemons import Daemon, NotInTime, end_all
from scripts.lan_network import HOSTS_MAX, Network, require
from scripts.throwaway import ThrowawayMesh

#: Port of every daemon's mesh service: each host has addresses of its own.
PORT = 7450
PREFIX = "kith-lan-"
#: In a data directory: what fills its disk.
FILLER = "filler"


class Lan:
    """One run: a network, a folder, a daemon a host, all daemons of one throwaway mesh.

    Whoever takes a run over does not have the mesh's CA: it starts daemons that are enrolled already.
    """

    def __init__(
        self,
        run: str,
        count: int,
        options: Sequence[str],
        environment: Mapping[str, str] | None = None,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.network = Network(run, count)
        self.network.addresses.update(addresses or {})
        self.options = list(options)
        self._environment = dict(environment or {})
        self.folder = Path(tempfile.gettempdir()) / f"{PREFIX}{run}"
        self.mesh: ThrowawayMesh | None = None
        self.daemons = {host: self._daemon(host) for host in self.network.hosts}

    def _daemon(self, host: str) -> Daemon:
        return Daemon(
            self.folder / host,
            self._arguments(host),
            name=host,
            prefix=self.network.inside(host),
            environment=self._environment,
        )

    def _arguments(self, host: str) -> list[str]:
        return ["--listen", f"{self.network.ipv4(host)}:{PORT}", *self.options]

    @classmethod
    def create(
        cls, count: int, options: Sequence[str] = (), run: str = "", environment: Mapping[str, str] | None = None
    ) -> "Lan":
        """Make the network and its folder; no daemon runs yet. Raises `KithError`."""
        require()
        if not 1 <= count <= HOSTS_MAX:
            raise KithError("usage", f"from 1 to {HOSTS_MAX} hosts", "scripts/lan 3", ExitCode.USAGE)
        lan = cls(run or secrets.token_hex(2), count, options, environment)
        try:
            lan.folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise KithError(
                "lan-exists", f"run {lan.run} is there already", "scripts/lan down", ExitCode.USAGE
            ) from error
        lan.mesh = ThrowawayMesh(f"lan {lan.run}")
        for daemon in lan.daemons.values():
            daemon.mesh = lan.mesh
        lan.save()
        lan.network.create()
        return lan

    @classmethod
    def find(cls, run: str = "") -> "Lan":
        """Take over the run of that name, or the only one there is. Raises `KithError`."""
        runs = cls.runs()
        if run and run not in runs:
            raise KithError("lan-unknown", f"there is no run {run}", "scripts/lan status", ExitCode.NOT_FOUND)
        if not runs:
            raise KithError("lan-unknown", "no LAN is up", "scripts/lan up 3", ExitCode.NOT_FOUND)
        if not run and len(runs) > 1:
            raise KithError("usage", f"several are up: {', '.join(runs)}", "name one: --run NAME", ExitCode.USAGE)
        run = run or runs[0]
        state = json.loads((Path(tempfile.gettempdir()) / f"{PREFIX}{run}" / "state.json").read_text())
        lan = cls(run, state["count"], state["options"], addresses=state["addresses"])
        for host, pid in state["pids"].items():
            lan.daemons[host].adopted = pid
        return lan

    @staticmethod
    def runs() -> list[str]:
        """Names of the runs of this user that are up."""
        folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}*/state.json")
        return sorted(f.parent.name.removeprefix(PREFIX) for f in folders if f.stat().st_uid == os.getuid())

    def save(self) -> None:
        pids = {host: one.pid for host, one in self.daemons.items() if one.process is not None or one.adopted}
        addresses = self.network.addresses
        state = {"count": len(self.network.hosts), "options": self.options, "addresses": addresses, "pids": pids}
        beside = self.folder / "state.new"
        beside.write_text(json.dumps(state))
        beside.replace(self.folder / "state.json")

    def daemon(self, host: str) -> Daemon:
        if host not in self.daemons:
            names = ", ".join(self.daemons)
            raise KithError("host-unknown", f"there is no host {host}", f"one of {names}", ExitCode.NOT_FOUND)
        return self.daemons[host]

    def start(self, *hosts: str) -> None:
        """Start the daemons of these hosts, or of all."""
        for host in hosts or self.network.hosts:
            self.daemon(host).start()
            self.save()

    def kill(self, host: str) -> None:
        """SIGKILL to the daemon of a host, as a crash."""
        self.daemon(host).kill()

    def freeze(self, host: str) -> None:
        """Stop a host's processes where they are. Its kernel still answers on the network: the worst kind of dead."""
        self.daemon(host).send_all(signal.SIGSTOP)

    def thaw(self, host: str) -> None:
        self.daemon(host).send_all(signal.SIGCONT)

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        self.daemon(a), self.daemon(b)
        self.network.cut(a, b, one_way=one_way)

    def isolate(self, *hosts: str) -> None:
        """Cut these hosts off from all others; they still reach each other."""
        for one in hosts:
            for other in self.network.hosts:
                if other not in hosts:
                    self.cut(one, other)

    def lose(self, percent: float) -> None:
        self.network.lose(percent)

    def heal(self) -> None:
        self.network.heal()

    def readdress(self, host: str, ipv4: str) -> None:
        """A new address for a host; its daemon listens there from its next start on."""
        daemon = self.daemon(host)
        self.network.readdress(host, ipv4)
        daemon.arguments = self._arguments(host)
        self.save()

    def small_disk(self, host: str, megabytes: int) -> None:
        """Give a host a disk of its own of this size. Before the first start of its daemon."""
        folder = self.daemon(host).data_dir
        folder.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "kith", folder], check=True)

    def fill_disk(self, host: str) -> None:
        """Leave no room on a small disk."""
        folder = self.daemon(host).data_dir
        assert folder.is_mount(), "not a disk of its own"
        block = bytes(1 << 12)
        try:
            with (folder / FILLER).open("ab", buffering=0) as filler:
                while filler.write(block):
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def free_disk(self, host: str) -> None:
        (self.daemon(host).data_dir / FILLER).unlink(missing_ok=True)

    def down(self) -> None:
        """End every daemon, remove the namespaces and the folder. Raises `NotInTime` for one that had to be killed."""
        try:
            wrong = end_all(list(self.daemons.values()))
        finally:
            self.network.destroy()
            for daemon in self.daemons.values():
                if daemon.data_dir.is_mount():
                    subprocess.run(["umount", "--lazy", daemon.data_dir], check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
        if wrong:
            raise NotInTime("\n".join(wrong))

    def __enter__(self) -> "Lan":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
