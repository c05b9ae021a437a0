"""A LAN in one machine: hosts as network namespaces on one bridge, with real multicast.

Idea: the bridge lives in a namespace of its own and hosts hang on it by veth pairs whose host end is called eth0, so
nothing of the machine's own network is touched and several runs live side by side with the same addresses. Multicast
snooping is off: every host hears every group, as on a cheap switch. A cut drops frames in the bridge's forward path,
multicast and ARP included, one way or both; loss drops a random share of all frames there. A host's address can change
under its daemon, as by a new DHCP lease.

Not guaranteed: delay and reordering (the kernels of many test machines lack netem); loss that comes in bursts. Needs
root, `ip` (iproute2), `nft`.
Source: ip-netns(8), nft(8), bridge family.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from node.errors import ExitCode, KithError

#: Hosts of one LAN at most: the bridge and the machine bear more, nobody needs more.
HOSTS_MAX = 64
BRIDGE = "kithbr"
TABLE = "kith"

_PACKAGES = {"apt-get": "apt-get install -y", "dnf": "dnf install -y", "pacman": "pacman -S", "apk": "apk add"}


def why_not() -> tuple[str, str] | None:
    """What is missing for a LAN of namespaces and what mends it; None where nothing is."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only", "run it on a Linux machine or in a virtual one"
    if os.geteuid() != 0:
        return "network namespaces need root", f"sudo {' '.join(sys.orig_argv[-2:])}"
    missing = [name for name in ("ip", "nft") if not shutil.which(name)]
    if missing:
        package = {"ip": "iproute2", "nft": "nftables"}
        command = next((words for name, words in _PACKAGES.items() if shutil.which(name)), "install")
        return f"{' and '.join(missing)} not found", f"{command} {' '.join(package[name] for name in missing)}"
    try:
        _run(["ip", "netns", "add", name := f"kith-probe-{os.getpid()}"])
        _run(["ip", "netns", "del", name])
    except KithError as error:
        return f"this machine does not allow network namespaces ({error.message})", "run it outside this container"
    return None


def require() -> None:
    """Raises `KithError` where a LAN can not be made here."""
    if problem := why_not():
        raise KithError("lan-impossible", problem[0], problem[1], ExitCode.UNAVAILABLE)


def _run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
        raise KithError("lan-failed", message, "scripts/lan down, then again")
    return done.stdout


class Network:
    """The namespaces of one run. All methods raise `KithError` where a command fails."""

    def __init__(self, run: str, count: int) -> None:
        assert 1 <= count <= HOSTS_MAX
        self.run = run
        self.hosts = [f"h{number}" for number in range(1, count + 1)]
        self.addresses = {host: f"10.77.0.{host[1:]}" for host in self.hosts}  # IPv4, as they are now

    def namespace(self, host: str) -> str:
        return f"kith{self.run}-{host}"

    @property
    def _switch(self) -> str:
        return f"kith{self.run}-net"

    def ipv4(self, host: str) -> str:
        return self.addresses[host]

    def ipv6(self, host: str) -> str:
        """The host's unique local address; a link-local one is there too."""
        return f"fd77::{int(host[1:]):x}"

    def inside(self, host: str) -> list[str]:
        """What to put before a command to run it on `host`."""
        return ["ip", "netns", "exec", self.namespace(host)]

    def create(self) -> None:
        """Make everything; takes back what was made when a step fails."""
        try:
            self._create()
        except BaseException:
            self.destroy()
            raise

    def _create(self) -> None:
        _run(["ip", "netns", "add", self._switch])
        switch = ["ip", "-n", self._switch, "link"]
        options = ["mcast_snooping", "0", "stp_state", "0", "forward_delay", "0"]
        _run([*switch, "add", "name", BRIDGE, "type", "bridge", *options])
        _run([*switch, "set", "dev", BRIDGE, "up"])
        for host in self.hosts:
            name = self.namespace(host)
            _run(["ip", "netns", "add", name])
            _run([*switch, "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", name])
            _run([*switch, "set", "dev", host, "master", BRIDGE, "up"])
            # Addresses of a host that has been up for long are not tentative: no duplicate address detection.
            _run([*self.inside(host), "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad"])
            settings = [
                "link set dev lo up",
                "link set dev eth0 up",
                f"addr add {self.ipv4(host)}/24 brd + dev eth0",
                f"addr add {self.ipv6(host)}/64 dev eth0 nodad",
                "route add 224.0.0.0/4 dev eth0",  # IPv6 has its multicast route by itself
            ]
            _run(["ip", "-n", name, "-batch", "-"], "\n".join(settings))
        hook = "type filter hook forward priority {}; policy accept;".format
        self._nft(f"table bridge {TABLE} {{ chain forward {{ {hook(0)} }}; chain loss {{ {hook(1)} }}; }}")

    def _nft(self, rules: str) -> None:
        _run(["ip", "netns", "exec", self._switch, "nft", "-f", "-"], rules)

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """From now on nothing that `a` sends reaches `b`; nor the other way round unless `one_way`."""
        for source, target in [(a, b)] if one_way else [(a, b), (b, a)]:
            self._nft(f'add rule bridge {TABLE} forward iifname "{source}" oifname "{target}" drop')

    def lose(self, percent: float) -> None:
        """From now on lose this share of all frames, drawn for each one, between every two hosts and each way."""
        assert 0 <= percent < 100
        rules = f"flush chain bridge {TABLE} loss\n"
        if percent:
            rules += f"add rule bridge {TABLE} loss numgen random mod 10000 < {round(100 * percent)} drop\n"
        self._nft(rules)

    def heal(self) -> None:
        """Undo all cuts and lose nothing."""
        self._nft(f"flush chain bridge {TABLE} forward\nflush chain bridge {TABLE} loss")

    def readdress(self, host: str, ipv4: str) -> None:
        """Take a host's IPv4 address away and give it this one; connections of the old one stall without a reset."""
        device = ["ip", "-n", self.namespace(host), "addr"]
        _run([*device, "del", f"{self.ipv4(host)}/24", "dev", "eth0"])
        _run([*device, "add", f"{ipv4}/24", "brd", "+", "dev", "eth0"])
        self.addresses[host] = ipv4

    def unplug(self, host: str) -> None:
        """Take a host's interface down; its IPv4 address waits for `plug`."""
        _run(["ip", "-n", self.namespace(host), "link", "set", "dev", "eth0", "down"])

    def plug(self, host: str) -> None:
        _run(["ip", "-n", self.namespace(host), "link", "set", "dev", "eth0", "up"])
        _run(["ip", "-n", self.namespace(host), "route", "replace", "224.0.0.0/4", "dev", "eth0"])

    def cuts(self) -> list[tuple[str, str]]:
        """What is cut now, as (from, to)."""
        listing = _run(["ip", "netns", "exec", self._switch, "nft", "list", "chain", "bridge", TABLE, "forward"])
        found = []
        for line in listing.splitlines():
            words = line.replace('"', "").split()
            if words[:1] == ["iifname"]:
                found.append((words[1], words[3]))
        return found

    def destroy(self) -> None:
        """Remove every namespace of this run; links and rules go with them. Never raises for what is gone already."""
        for name in [*(self.namespace(host) for host in self.hosts), self._switch]:
            if Path("/run/netns", name).exists():
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
