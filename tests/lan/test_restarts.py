"""Nodes that come back: all at once after a power cut, and under another address."""

import contextlib
from functools import partial

import pytest

from mesh.wire import engine_pb2, local_pb2
from scripts.daemons import Daemon, formed, until
from scripts.lan_hosts import PORT
from scripts.workload import agreed, completed, submit, under_way, up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(150)]

NEW_ADDRESS = "10.77.0.99"


async def test_a_job_outlives_all_of_its_nodes(lan_of: LanFactory) -> None:
    """The power goes: every daemon is killed in the middle of a job, and started again."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    await up(everyone)
    job = await submit(everyone[0], pieces=9)
    await under_way(everyone[0], job, done=3)
    for one in everyone:
        one.kill()
    lan.start()
    await up(everyone)
    after = await completed(everyone[0], job)
    assert after.tasks_done == after.tasks_total
    await agreed(everyone, [job])


async def test_a_node_returns_under_another_address(lan_of: LanFactory) -> None:
    """Killed in the middle of a job, it comes back elsewhere, without mDNS: its cache leads it to its peers."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    victim.kill()
    lan.readdress(victim.name, NEW_ADDRESS)
    victim.arguments = [*victim.arguments, "--no-mdns"]
    victim.start()
    await up(everyone)
    await completed(victim, job)
    seen = {node.name: node for node in await leader.nodes()}
    assert [(a.host, a.port) for a in seen[victim.name].addresses] == [(NEW_ADDRESS, PORT)]
    await agreed(everyone, [job])


async def test_an_address_changes_under_a_running_node(lan_of: LanFactory) -> None:
    """A new lease in the middle of a job: connections of the old address stall without a reset."""
    lan = lan_of(3, "--listen", f"0.0.0.0:{PORT}")
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    job = await submit(leader, pieces=9)
    await under_way(leader, job, on=victim.name)
    lan.network.readdress(victim.name, NEW_ADDRESS)
    await completed(leader, job)
    await formed(everyone)
    for one in everyone:
        await until(partial(finds, one, victim.name), 60.0, "where it is now")
    await agreed(everyone, [job])


async def test_a_node_that_starts_before_its_network_comes_into_the_mesh_with_it(lan_of: LanFactory) -> None:
    """After a power cut a board is up before the access point is. Nobody has its address; mDNS has to tell it."""
    lan = lan_of(2, start=False)
    for one in lan.daemons.values():
        one.arguments = ["--engine", "echo"]
    lan.network.unplug("h2")
    lan.start()
    first, late = lan.daemons["h1"], lan.daemons["h2"]
    await late.ready()
    assert [address.host for address in (await late.status()).addresses] == ["127.0.0.1"]
    lan.network.plug("h2")
    await formed([first, late], 60.0)
    seen = {node.name: node for node in await first.nodes()}
    assert [address.host for address in seen["h2"].addresses] == [lan.network.ipv4("h2")]


async def finds(one: Daemon, name: str) -> bool:
    """Whether a node was told the new address, and reaches what was moved there beside the link too."""
    seen = {node.name: node for node in await one.nodes()}
    if [(address.host, address.port) for address in seen[name].addresses] != [(NEW_ADDRESS, PORT)]:
        return False
    request = local_pb2.ChatRequest(request=engine_pb2.GenerateRequest(prompt="Is it you?"), node=name)
    async with one.client() as client, contextlib.aclosing(client.chat(request)) as events:
        said = [event.generate.delta.text async for event in events]
    return bool("".join(said))
