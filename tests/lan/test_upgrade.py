"""An upgrade from an earlier release keeps a node's data: its directory is used as it is, then enters a mesh.

The release is one that spoke plain text. Such a node and one of this release do not link, and could never meet: it
bound loopback or a test network only.
"""

import pytest

from scripts.daemons import Daemon
from scripts.workload import agreed, completed, standing, submit, up
from tests.lan.conftest import LanFactory
from tests.lan.releases import unpacked

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `node` is the release that spoke plain text."""
    return unpacked("0.1.0", tmp_path_factory.mktemp("previous"))


async def test_nodes_of_an_earlier_release_are_upgraded_in_place_and_keep_all_jobs(
    lan_of: LanFactory, previous: dict[str, str]
) -> None:
    lan = lan_of(3, start=False)
    everyone = list(lan.daemons.values())
    for one in everyone:
        one.environment = {**one.environment, **previous}
        one.mesh = None
        one.start()
    await up(everyone)
    jobs = [await submit(one, 4, one.name) for one in everyone]
    for job in jobs:
        for one in everyone:
            await completed(one, job)
    before = await agreed(everyone, jobs)
    ids = {one.name: (await one.status()).node_id for one in everyone}

    # The old data directory, the new code, in no mesh yet: each is alone, with its jobs.
    for one in everyone:
        one.end()
        upgrade(one)
        without_network = [option for option in one.arguments if option != "--listen" and ":" not in option]
        one.arguments, listening = without_network, one.arguments
        one.start()
        await up([one])
        alone = await standing(one, jobs)
        assert (alone.jobs, alone.results) == (before.jobs, before.results)
        assert (await one.status()).addresses == []
        one.end()
        one.arguments, one.mesh = listening, lan.mesh

    for one in everyone:
        one.start()
    await up(everyone)
    assert ids == {one.name: (await one.status()).node_id for one in everyone}, "a node keeps its key, so its id"
    jobs.append(await submit(everyone[1], 4, "river"))
    await completed(everyone[1], jobs[-1])
    after = await agreed(everyone, jobs)
    assert before.results.items() <= after.results.items()


async def test_what_a_node_holds_of_authors_that_never_entered_the_mesh_stays_with_it(
    lan_of: LanFactory, previous: dict[str, str]
) -> None:
    """A second old node is lost; its facts have no certificate, so nobody else takes them, and nobody minds."""
    lan = lan_of(3, start=False)
    kept, lost, fresh = lan.daemons.values()
    for one in (lost, kept):
        one.environment = {**one.environment, **previous}
        one.mesh = None
        one.start()
        await up([lost] if one is lost else [lost, kept])  # so the lost one leads, and ends the job
    old_job = await submit(lost, 4, "old")
    await completed(kept, old_job)
    before = await standing(kept, [old_job])
    for one in (kept, lost):
        one.end()
    upgrade(kept)
    kept.mesh = lan.mesh
    kept.start()
    fresh.start()
    await up([kept, fresh])
    job = await submit(fresh, 4, "new")
    await completed(kept, job)
    await completed(fresh, job)
    assert (await standing(kept, [old_job])).results == before.results
    async with fresh.client() as client:
        assert [known.job_id for known in await client.jobs()] == [job]
    said = (fresh.data_dir / "logs" / "kith.log").read_text()
    assert "has no certificate here" not in said, "it was not even sent"


def upgrade(daemon: Daemon) -> None:
    daemon.environment = {name: value for name, value in daemon.environment.items() if name != "PYTHONPATH"}
