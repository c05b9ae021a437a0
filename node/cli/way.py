"""What can be told of the network between this machine and an address: interface, tunnel, subnet, packet size.

Idea: the kernel says which own address packets to the other machine leave by; that address names the interface and the
subnet. Nothing is sent.

Not told: what lies beyond the first router. A VLAN and a VPN on a router look like any other subnet.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

from node.cli.finding import Finding, ok, warn

#: Every IPv6 link carries packets of this size (RFC 8200, section 5), bytes.
MTU_MIN = 1280
NETWORK = "way"


def own_address(host: str) -> str | None:
    """The own address that packets to `host` leave by; nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def way(host: str, mine: str | None) -> Iterator[Finding]:
    """What can be told of the network in between: interface, tunnel, subnet."""
    from node.interfaces import interfaces

    there = ipaddress.ip_address(host.partition("%")[0])
    if mine is None or there.is_loopback:
        return
    plain = mine.partition("%")[0]
    by = next((one for one in interfaces() if plain in {str(a).partition("%")[0] for a in one.addresses}), None)
    if by is None:
        return
    why_not = by.why_left_out()
    if why_not == "it is a tunnel":
        words = f"the way goes through {by.name}, a tunnel (a VPN?): multicast does not, so mDNS finds nobody there"
        yield warn(NETWORK, words, f"kith up --interface {by.name} --seed HOST:PORT, on both sides")
    elif why_not:
        words = f"the way goes through {by.name}, which is not used unless it is named: {why_not}"
        yield warn(NETWORK, words, f"kith up --interface {by.name}")
    mtu = _mtu(by.name)
    if 0 < mtu < MTU_MIN:
        yield warn(
            NETWORK, f"{by.name} carries packets of {mtu} bytes only", f"ip link set {by.name} mtu {MTU_MIN} or more"
        )
    if (prefix := prefix_of(plain)) is not None and not there.is_link_local:
        if there in ipaddress.ip_network(f"{plain}/{prefix}", strict=False):
            yield ok(NETWORK, f"by {by.name} ({plain}), in the same subnet")
        elif not why_not:
            words = f"by {by.name} ({plain}), and {host} is in another subnet (a router, a VLAN or a VPN in between)"
            yield warn(NETWORK, words, "mDNS does not cross it: name the node with kith up --seed HOST:PORT")


def prefix_of(address: str) -> int | None:
    """Length of the subnet's prefix of an own address."""
    import ifaddr

    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if (ip.ip if isinstance(ip.ip, str) else ip.ip[0].partition("%")[0]) == address:
                return int(ip.network_prefix)
    return None


def _mtu(interface: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{interface}/mtu").read_text())
    except (OSError, ValueError):
        return 0
