"""`kith doctor` on hosts of a network: what is wrong there for real is what it says."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.daemons import ROOT
from scripts.lan_network import Network, why_not

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(120)]

PORT = 7450


@pytest.fixture
def network() -> Iterator[Network]:
    if problem := why_not():
        pytest.skip(f"{problem[0]}; {problem[1]}")
    made = Network("dr", 2)
    made.create()
    yield made
    made.destroy()


def on(network: Network, host: str, *command: str) -> None:
    subprocess.run([*network.inside(host), *command], check=True, capture_output=True, timeout=20)


def findings(network: Network, folder: Path, *address: str) -> list[dict[str, Any]]:
    """Of `kith doctor` on the first host."""
    command = [*network.inside("h1"), sys.executable, "-m", "node.cli.main", "--data-dir", str(folder)]
    done = subprocess.run(
        [*command, "doctor", *address, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"KITH_ENGINE": "echo", "PYTHONPATH": str(ROOT)},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return found


def said(found: list[dict[str, Any]], level: str, words: str) -> bool:
    return any(one["level"] == level and words in one["message"] and one["remedy"] for one in found)


def test_a_closed_port_a_firewall_an_empty_address_and_no_way_are_told_apart(network: Network, tmp_path: Path) -> None:
    there = f"{network.ipv4('h2')}:{PORT}"
    assert said(findings(network, tmp_path, there), "fail", "nobody listens on port")
    rules = "table inet f { chain i { type filter hook input priority 0; tcp dport 7450 drop; }; }"
    on(network, "h2", "nft", rules)
    assert said(findings(network, tmp_path, there), "fail", "no answer from")
    assert said(findings(network, tmp_path, f"10.77.0.99:{PORT}"), "fail", "no machine answers at")
    assert said(findings(network, tmp_path, f"198.51.100.7:{PORT}"), "fail", "no way to")


def test_the_way_is_told_same_subnet_router_and_tunnel(network: Network, tmp_path: Path) -> None:
    found = findings(network, tmp_path, f"{network.ipv4('h2')}:{PORT}")
    assert [one["message"] for one in found if one["check"] == "way"] == ["by eth0 (10.77.0.1), in the same subnet"]
    on(network, "h1", "ip", "route", "add", "198.51.100.0/24", "via", network.ipv4("h2"))
    assert said(findings(network, tmp_path, f"198.51.100.7:{PORT}"), "warn", "in another subnet")
    on(network, "h1", "ip", "link", "add", "wg0", "mtu", "1200", "type", "veth", "peer", "name", "other")
    on(network, "h1", "ip", "addr", "add", "10.99.0.1/24", "dev", "wg0")
    for name in ("wg0", "other"):
        on(network, "h1", "ip", "link", "set", name, "up")
    found = findings(network, tmp_path, f"10.99.0.2:{PORT}")
    assert said(found, "warn", "a tunnel")
    assert said(found, "warn", "packets of 1200 bytes only")


def test_multicast_that_is_filtered_is_noticed(network: Network, tmp_path: Path) -> None:
    assert any("eth0 (10.77.0.1): multicast works" in one["message"] for one in findings(network, tmp_path))
    rules = "table inet f { chain o { type filter hook output priority 0; ip daddr 224.0.0.0/4 drop; }; }"
    on(network, "h1", "nft", rules)
    assert said(findings(network, tmp_path), "warn", "eth0 (10.77.0.1): multicast does not work here")
