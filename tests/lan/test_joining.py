"""Joining over a network: the inviter is found by mDNS or named, from a host of its own."""

import re
import subprocess
import sys

import pytest

from mesh.certificates import Role
from scripts.daemons import Daemon, formed
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(240)]


def kith(node: Daemon, *arguments: str) -> str:
    """One command on the node's host."""
    done = subprocess.run(
        [*node.prefix, sys.executable, "-m", "node.cli.main", "--data-dir", str(node.data_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_hosts_join_by_mdns_and_by_address_and_find_each_other(lan_of: LanFactory) -> None:
    lan = lan_of(3, start=False)
    founder, by_mdns, by_address = lan.daemons.values()
    assert lan.mesh is not None
    lan.mesh.enrol(founder.data_dir, Role.ISSUER)
    for one in (by_mdns, by_address):
        one.mesh = None  # these two come in by the door
    founder.start()
    await founder.ready(engine=False)
    shown = kith(founder, "invite", "--no-wait", "--uses", "2")
    [code] = re.findall(r"kith join (\d\S+)", shown)
    [address] = re.findall(r"address  ([\d.]+:\d+)", shown)
    assert address.startswith(lan.network.ipv4(founder.name))

    said = kith(by_mdns, "join", code)
    assert f"asking {address}" in said
    said = kith(by_address, "join", code, address)
    assert "joined" in said

    by_mdns.start()
    by_address.start()
    await formed(list(lan.daemons.values()))
    lan.save()
