"""Nodes of the previous release beside new ones: one mesh, the same jobs; and an upgrade that keeps a node's data.

previous/ holds the wheel of the release before this one. It runs with the dependencies of this environment.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.daemons import Daemon, formed
from scripts.workload import agreed, completed, standing, submit, under_way, up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(240)]

WHEELS = Path(__file__).parent / "previous"


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `node` is the previous release's."""
    [wheel] = WHEELS.glob("kithmesh-*.whl")
    folder = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    environment = {"PYTHONPATH": str(folder)}
    command = [
        sys.executable,
        "-P",
        "-c",
        "import node, mesh, solver; print(node.__file__, mesh.__file__, solver.__file__)",
    ]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 3
    assert all(Path(file).is_relative_to(folder) for file in found)
    return environment


async def test_old_and_new_nodes_are_one_mesh_and_an_upgrade_keeps_all_jobs(
    lan_of: LanFactory, previous: dict[str, str]
) -> None:
    lan = lan_of(3, environments={"h1": previous, "h2": previous})
    old, other_old, new = everyone = list(lan.daemons.values())
    await up(everyone)
    jobs = []
    for submitter in (old, new):
        job = await submit(submitter, 9, submitter.name)
        jobs.append(job)
        for one in everyone:
            last = await completed(one, job)
            assert {task.node_name for task in last.tasks} == {"h1", "h2", "h3"}, "all of them worked on it"
    before = await agreed(everyone, jobs)

    # Upgraded in place: the old data directory, the new code. Its own jobs are there before any peer is.
    old.end()
    upgrade(old)
    for one in (other_old, new):
        lan.cut(old.name, one.name)
    old.start()
    await up([old])
    alone = await standing(old, jobs)
    assert (alone.jobs, alone.results) == (before.jobs, before.results)
    lan.heal()
    await up(everyone)
    await agreed(everyone, jobs)

    other_old.end()
    upgrade(other_old)
    other_old.start()
    await up(everyone)
    jobs.append(await submit(other_old, 4, "river"))
    await completed(other_old, jobs[-1])
    after = await agreed(everyone, jobs)
    assert before.results.items() <= after.results.items()


@pytest.mark.parametrize("old_leads", [True, False], ids=["old", "new"])
async def test_the_leader_dies_and_the_other_release_takes_over(
    lan_of: LanFactory, previous: dict[str, str], old_leads: bool
) -> None:
    """Two nodes, one of each release; the one that leads is killed in the middle of a job, then comes back."""
    lan = lan_of(2, environments={"h1": previous}, start=False)
    old, new = everyone = list(lan.daemons.values())
    first, second = (old, new) if old_leads else (new, old)
    first.start()
    await up([first])
    second.start()
    leader = await up(everyone)
    assert leader is first, "who leads stays the leader when one more joins"
    job = await submit(second, 6)
    await under_way(second, job)
    first.kill()
    await completed(second, job)
    assert await formed([second]) is second
    first.start()
    await up(everyone)
    await agreed(everyone, [job])


def upgrade(daemon: Daemon) -> None:
    daemon.environment = {name: value for name, value in daemon.environment.items() if name != "PYTHONPATH"}
