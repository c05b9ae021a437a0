"""Machines whose network comes and goes under a running node: it is found where it is now, by mDNS alone."""

import pytest

from scripts.daemons import Daemon, until
from scripts.lan_hosts import Lan
from scripts.workload import up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(150)]

FOUND_WITHIN_S = 60.0


def anywhere(lan: Lan) -> list[Daemon]:
    """The daemons, to be started without `--listen`, as a person starts them."""
    for one in lan.daemons.values():
        at = one.arguments.index("--listen")
        one.arguments = [*one.arguments[:at], *one.arguments[at + 2 :]]
    return list(lan.daemons.values())


async def test_nodes_that_start_before_their_network_find_each_other_when_it_comes(lan_of: LanFactory) -> None:
    lan = lan_of(2, start=False)
    everyone = anywhere(lan)
    for host in lan.network.hosts:
        lan.network.unplug(host)
    lan.start()
    for one in everyone:
        await one.ready()
    for host in lan.network.hosts:
        lan.network.plug(host)
    await up(everyone, FOUND_WITHIN_S)


async def test_nodes_that_moved_to_another_network_are_found_there(lan_of: LanFactory) -> None:
    """They were never there at the same time before: only who speaks under its new address is heard."""
    lan = lan_of(2, start=False)
    everyone = anywhere(lan)
    for number, (host, one) in enumerate(lan.daemons.items()):
        lan.start(host)
        await one.ready()
        lan.network.unplug(host)
        lan.network.addresses[host] = f"10.77.0.{90 + number}"
    for host in lan.network.hosts:
        lan.network.plug(host)
    await up(everyone, FOUND_WITHIN_S)

    async def told() -> bool:
        return {address.host for info in await everyone[0].nodes() for address in info.addresses} == {
            lan.network.ipv4(host) for host in lan.network.hosts
        }

    await until(told, FOUND_WITHIN_S, "where both are now")
