"""Nodes of the previous release and of this one in one mesh: they link, lead each other, and end each other's jobs."""

import signal

import pytest

from mesh.wire import engine_pb2, local_pb2
from scripts.daemons import Daemon, until
from scripts.lan_hosts import Lan
from scripts.workload import agreed, completed, submit, under_way, up
from tests.lan.conftest import LanFactory
from tests.lan.releases import PREVIOUS, unpacked

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `node` is the previous release's."""
    return unpacked(PREVIOUS, tmp_path_factory.mktemp("previous"))


async def version(daemon: Daemon) -> str:
    return (await daemon.status()).software_version


def aged(lan: Lan, previous: dict[str, str], *hosts: str) -> None:
    """Let these hosts run the previous release from their next start on."""
    for host in hosts:
        daemon = lan.daemons[host]
        daemon.environment = {**daemon.environment, **previous}


def renewed(daemon: Daemon) -> None:
    """Stop it in good order and start it again, with this release."""
    daemon.end()
    daemon.environment = {name: value for name, value in daemon.environment.items() if name != "PYTHONPATH"}
    daemon.start()


@pytest.mark.parametrize("old_leads", [True, False], ids=["old-leads", "new-leads"])
async def test_two_releases_share_jobs_and_follow_each_others_leader(
    lan_of: LanFactory, previous: dict[str, str], old_leads: bool
) -> None:
    """Four nodes, two of each. The first leader is killed at work; whoever comes next ends the jobs of all."""
    lan = lan_of(4, start=False)
    hosts = list(lan.daemons)
    aged(lan, previous, *hosts[:2])
    old, new = [lan.daemons[host] for host in hosts[:2]], [lan.daemons[host] for host in hosts[2:]]
    first, second = (old, new) if old_leads else (new, old)
    for one in first:
        one.start()
    await up(first)  # so that one of these leads
    for one in second:
        one.start()
    everyone = [*old, *new]
    leader = await up(everyone)
    assert leader in first
    assert [await version(one) for one in old] == [PREVIOUS] * 2
    assert PREVIOUS not in [await version(one) for one in new]

    jobs = [await submit(one, 6, one.name) for one in everyone]
    left = [one for one in everyone if one is not leader]
    await under_way(left[0], jobs[0], done=1)
    leader.send_all(signal.SIGKILL)
    leader.end()
    for one in left:
        for job in jobs:
            await completed(one, job)
    await agreed(left, jobs)
    leader.start()  # with what it had, of its own release
    await up(everyone)
    await agreed(everyone, jobs)


async def test_a_mesh_is_upgraded_node_by_node_while_it_works(lan_of: LanFactory, previous: dict[str, str]) -> None:
    lan = lan_of(3, start=False)
    hosts = list(lan.daemons)
    aged(lan, previous, *hosts)
    everyone = list(lan.daemons.values())
    for one in everyone:
        one.start()
    await up(everyone)
    jobs = [await submit(everyone[0], 4, "before")]
    for one in everyone:
        other = next(daemon for daemon in everyone if daemon is not one)
        jobs.append(await submit(other, 8, f"while {one.name} is renewed"))
        await under_way(other, jobs[-1], done=1)
        renewed(one)
        await up(everyone)
    assert PREVIOUS not in [await version(one) for one in everyone]
    for one in everyone:
        for job in jobs:
            await completed(one, job)
    await agreed(everyone, jobs)


async def test_generation_crosses_releases_both_ways(lan_of: LanFactory, previous: dict[str, str]) -> None:
    """Each is asked for the other one's answer, by name."""
    lan = lan_of(2, start=False)
    hosts = list(lan.daemons)
    aged(lan, previous, hosts[0])
    everyone = list(lan.daemons.values())
    for one in everyone:
        one.start()
    await up(everyone)
    for asked, answering in ((everyone[0], everyone[1]), (everyone[1], everyone[0])):

        async def answer(asked: Daemon = asked, answering: Daemon = answering) -> tuple[str, str]:
            message = engine_pb2.ChatMessage(role="user", content="Say a word about rivers.")
            request = engine_pb2.GenerateRequest(messages=[message], max_tokens=32)
            node, text = "", ""
            async with asked.client() as client:
                async for event in client.chat(local_pb2.ChatRequest(request=request, node=answering.name)):
                    node = event.routed.node_name or node
                    text += event.generate.delta.text
            return node, text

        node, text = await until(answer, 20.0, "an answer of the other release")
        assert node == answering.name
        assert "rivers" in text
