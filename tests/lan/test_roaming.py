"""Machines whose network comes and goes under a running node: it is found where it is now, by mDNS alone."""

from functools import partial

import pytest

from scripts.daemons import Daemon, formed, until
from scripts.lan_hosts import Lan
from scripts.workload import agreed, completed, submit, under_way, up
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

    for host in lan.network.hosts:
        await until(partial(tells, everyone[0], host, lan.network.ipv4(host)), FOUND_WITHIN_S, "where both are now")


async def test_a_machine_whose_network_goes_in_the_middle_of_a_job_is_found_where_it_comes_back(
    lan_of: LanFactory,
) -> None:
    """The leader's, so that the others elect one and finish the job, and the returned one agrees with them."""
    lan = lan_of(3, start=False)
    everyone = anywhere(lan)
    lan.start()
    leader = await up(everyone)
    others = [one for one in everyone if one is not leader]
    job = await submit(others[0], pieces=9)
    await under_way(others[0], job, on=leader.name)
    lan.network.unplug(leader.name)
    await formed(others)
    lan.network.addresses[leader.name] = "10.77.0.99"
    lan.network.plug(leader.name)
    await formed(everyone, FOUND_WITHIN_S)
    for one in everyone:
        await completed(one, job)
    await until(partial(tells, others[0], leader.name, "10.77.0.99"), FOUND_WITHIN_S, "where it is now")
    await agreed(everyone, [job])


async def tells(one: Daemon, name: str, host: str) -> bool:
    return any(info.name == name and [at.host for at in info.addresses] == [host] for info in await one.nodes())
