"""Which interfaces are used, on made-up machines and on this one."""

import ipaddress

import pytest

from node.errors import KithError
from node.interfaces import (
    Interface,
    addresses_for,
    choose,
    interfaces,
    is_loopback,
    resolve,
)


def interface(name: str, *addresses: str, index: int = 1, **flags: bool) -> Interface:
    return Interface(name, index, tuple(ipaddress.ip_address(address) for address in addresses), **flags)


LO = interface("lo", "127.0.0.1", "::1")
ETH = interface("eth0", "192.168.1.7", "fd00::7", "fe80::7%eth0")
WIFI = interface("wlan0", "10.0.0.7", "fe80::8%wlan0")
DOCKER = interface("docker0", "172.17.0.1", bridge=True)
HOST_BRIDGE = interface("br0", "192.168.2.7", bridge=True, hardware_port=True)
WG = interface("wg0", "10.9.0.2")
VETH = interface("veth12ab", "fe80::9%veth12ab")
DOWN = interface("eth1", "192.168.9.9", up=False)
BARE = interface("eth2")
MACHINE = [LO, ETH, WIFI, DOCKER, HOST_BRIDGE, WG, VETH, DOWN, BARE]


def test_the_default_is_the_lan() -> None:
    assert choose((), "0.0.0.0", MACHINE) == [ETH, WIFI, HOST_BRIDGE]
    assert choose((), "192.168.1.7", MACHINE) == [ETH, WIFI, HOST_BRIDGE]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_a_node_on_loopback_uses_loopback_only(host: str) -> None:
    assert choose((), host, MACHINE) == [LO]
    assert is_loopback(host)


def test_on_no_network_there_is_loopback_only() -> None:
    assert choose((), "0.0.0.0", [LO, DOCKER, DOWN, BARE]) == [LO]
    assert addresses_for("0.0.0.0", present=[LO, DOCKER, DOWN]) == ["127.0.0.1"]
    assert addresses_for("192.168.1.7", present=[LO, DOWN]) == ["192.168.1.7"]


def test_names_and_addresses_override_in_the_order_given_and_once() -> None:
    assert choose(["wg0", "192.168.1.7", "eth0", "fe80::8"], "127.0.0.1", MACHINE) == [WG, ETH, WIFI]


def test_an_unknown_interface_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(KithError) as caught:
        choose(["eth7"], "127.0.0.1", [LO, ETH, BARE])
    assert caught.value.code == "interface-unknown"
    assert "'eth7'" in caught.value.message
    assert "lo (127.0.0.1, ::1)" in caught.value.remedy
    assert "eth2 (no address)" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("eth0", True),
        ("enp3s0", True),
        ("wlp2s0", True),
        ("en0", True),
        ("bond0", True),
        ("docker_gwbridge", False),
        ("br-0f1e2d3c4b5a", False),
        ("virbr0", False),
        ("vethab12", False),
        ("cni0", False),
        ("flannel.1", False),
        ("tun0", False),
        ("tap0", False),
        ("wg0", False),
        ("utun4", False),
        ("tailscale0", False),
    ],
)
def test_names_decide_and_every_omission_has_a_reason(name: str, used: bool) -> None:
    made = interface(name, "10.1.2.3")
    assert (choose((), "0.0.0.0", [made]) == [made]) == used
    assert (made.why_left_out() == "") == used


@pytest.mark.parametrize(
    ("made", "reason"),
    [(DOWN, "down"), (BARE, "no address"), (LO, "loopback"), (DOCKER, "bridge without"), (WG, "tunnel")],
)
def test_reasons(made: Interface, reason: str) -> None:
    assert reason in made.why_left_out()


def test_addresses_to_give_to_others() -> None:
    assert addresses_for("127.0.0.1", present=MACHINE) == ["127.0.0.1"]
    assert addresses_for("[::1]", present=MACHINE) == ["::1"]
    assert addresses_for("192.168.1.7", present=MACHINE) == ["192.168.1.7"]
    assert addresses_for("0.0.0.0", present=MACHINE) == ["192.168.1.7", "10.0.0.7", "192.168.2.7"]
    assert addresses_for("::", present=[LO, ETH, WIFI]) == ["192.168.1.7", "fd00::7", "10.0.0.7"]
    assert addresses_for("::", present=[interface("eth0", "fe80::7%eth0")]) == ["fe80::7%eth0"]
    assert addresses_for("0.0.0.0", ["wlan0"], MACHINE) == ["10.0.0.7"]


@pytest.mark.parametrize("host", ["no such host.invalid", "300.1.1.1", "a" * 300])
def test_what_is_no_address_is_an_error_with_a_remedy(host: str) -> None:
    with pytest.raises(KithError) as caught:
        resolve(host)
    assert caught.value.code == "bad-address"
    assert caught.value.remedy


def test_this_machine_has_a_loopback_that_is_up() -> None:
    found = interfaces()
    loopback = [one for one in found if one.loopback]
    assert loopback
    assert loopback[0].up
    assert ipaddress.ip_address("127.0.0.1") in loopback[0].addresses
    assert all(
        address.scope_id == one.name
        for one in found
        for address in one.addresses
        if isinstance(address, ipaddress.IPv6Address) and address.is_link_local
    )
