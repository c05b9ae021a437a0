"""Which network interfaces this node uses, and which addresses it gives to others.

By default the interfaces of the LAN: up, with an address, and none of those that software makes for itself:

- bridges, because a container bridge is no LAN (python-zeroconf on all interfaces has caused multicast storms there).
  A bridge that has a hardware port is kept: it is how a host that runs virtual machines reaches its LAN;
- by name: container and virtual machine interfaces, and tunnels. A tunnel carries no multicast, and whoever wants mesh
  traffic in it names it with `--interface`;
- loopback, unless the node listens on loopback: then loopback only. A machine that is on no network has nothing else,
  so its nodes use loopback among themselves until it is on one.

Interfaces are judged by name and by `/sys/class/net/NAME/bridge`, never by their driver: inside a network namespace the
only interface is often a virtual one that is called eth0. Where there is no `/sys` (macOS), names alone decide.

Not guaranteed: that an address can be reached from elsewhere; peers prove that by dialling it.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ifaddr

from node.errors import ExitCode, KithError

_SYS_NET = Path("/sys/class/net")
_IFF_UP = 0x1

_MADE_BY_SOFTWARE = re.compile(r"(docker|br-|virbr|veth|cni|flannel|cali|vnet|lxc|lxdbr|podman|kube|vmnet|vboxnet)")
_TUNNEL = re.compile(r"(tun|tap|wg|utun|ppp|tailscale|zt)")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface with its addresses, IPv4 first. Link-local IPv6 addresses carry their zone: `fe80::1%eth0`."""

    name: str
    index: int
    addresses: tuple[IPAddress, ...]
    up: bool = True
    bridge: bool = False
    hardware_port: bool = False  # of a bridge

    @property
    def loopback(self) -> bool:
        return any(address.is_loopback for address in self.addresses)

    def why_left_out(self) -> str:
        """Why it is not used unless named, as a phrase after "because"; empty where it is used."""
        if not self.up:
            return "it is down"
        if not self.addresses:
            return "it has no address"
        if self.loopback:
            return "it is loopback"
        if self.bridge:
            return "" if self.hardware_port else "it is a bridge without a hardware port"
        if _MADE_BY_SOFTWARE.match(self.name):
            return "it belongs to containers or virtual machines"
        if _TUNNEL.match(self.name):
            return "it is a tunnel"
        return ""


def interfaces() -> list[Interface]:
    """All interfaces of this machine, in the kernel's order."""
    found = []
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        name = adapter.nice_name
        addresses: list[IPAddress] = []
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                addresses.append(ipaddress.IPv4Address(ip.ip))
            else:
                text, _, scope = ip.ip
                plain = ipaddress.IPv6Address(text.partition("%")[0])
                addresses.append(ipaddress.IPv6Address(f"{plain}%{name}") if plain.is_link_local and scope else plain)
        addresses.sort(key=lambda address: (address.version, address.is_link_local))
        bridge = (_SYS_NET / name / "bridge").is_dir()
        found.append(
            Interface(
                name=name,
                index=adapter.index or 0,
                addresses=tuple(addresses),
                up=_is_up(name),
                bridge=bridge,
                hardware_port=bridge and any((_SYS_NET / port / "device").exists() for port in _ports(name)),
            )
        )
    return found


def choose(named: Sequence[str], listen_host: str, present: Sequence[Interface] | None = None) -> list[Interface]:
    """The interfaces to use.

    Args:
        named: names or addresses from `--interface`; they override everything else. An address takes the interface
            that has it.
        listen_host: where the node listens; loopback means loopback only.
        present: for tests; None: those of this machine.

    Raises:
        KithError: `interface-unknown`: nothing here has that name or address.
    """
    here = interfaces() if present is None else list(present)
    if named:
        return list(dict.fromkeys(_find(name, here) for name in named))
    if is_loopback(listen_host):
        return [interface for interface in here if interface.loopback and interface.up]
    lan = [interface for interface in here if not interface.why_left_out()]
    return lan or [interface for interface in here if interface.loopback and interface.up]


def addresses_for(listen_host: str, named: Sequence[str] = (), present: Sequence[Interface] | None = None) -> list[str]:
    """The addresses that a node listening on `listen_host` gives to others, best first.

    An unspecified host (`0.0.0.0`, `::`) stands for the addresses of the chosen interfaces, so for loopback where this
    machine is on no network: IPv4 ones, and with `::` IPv6 ones too. Link-local IPv6 addresses are given only where an
    interface has no other, since their zone means nothing elsewhere. A name is resolved. Raises `KithError`
    (`interface-unknown`, `bad-address`).
    """
    host = resolve(listen_host)
    if not host.is_unspecified:
        return [str(host)]
    addresses: list[str] = []
    for interface in choose(named, listen_host, present):
        usable = [address for address in interface.addresses if address.version == 4 or host.version == 6]
        routed = [address for address in usable if not address.is_link_local]
        addresses += [str(address) for address in routed or usable]
    return list(dict.fromkeys(addresses))


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, is this machine's loopback."""
    return resolve(host).is_loopback


def resolve(host: str) -> IPAddress:
    """`host` as an address; a name by the system's resolver. Raises `KithError` (`bad-address`)."""
    text = host.strip("[]")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)
        return ipaddress.ip_address(str(found[0][4][0]))
    except (OSError, UnicodeError, ValueError) as error:
        raise KithError(
            "bad-address",
            f"{host!r} is no address of this machine: {error}",
            "Give an IP address, for example 127.0.0.1.",
            ExitCode.USAGE,
        ) from error


def _find(name: str, here: Sequence[Interface]) -> Interface:
    for interface in here:
        plain = {str(address).partition("%")[0] for address in interface.addresses}
        if name == interface.name or name.strip("[]").partition("%")[0] in plain:
            return interface
    known = ", ".join(
        f"{interface.name} ({', '.join(map(str, interface.addresses)) or 'no address'})" for interface in here
    )
    raise KithError(
        "interface-unknown",
        f"there is no interface {name!r} here",
        f"Name one of: {known or 'none found'}.",
        ExitCode.USAGE,
    )


def _is_up(name: str) -> bool:
    try:
        return bool(int((_SYS_NET / name / "flags").read_text(), 16) & _IFF_UP)
    except (OSError, ValueError):
        return True


def _ports(bridge: str) -> list[str]:
    try:
        return os.listdir(_SYS_NET / bridge / "brif")
    except OSError:
        return []
