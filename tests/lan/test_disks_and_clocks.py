"""A disk that is full and clocks that jump, while a job runs."""

import signal

import pytest

from node.errors import ExitCode
from scripts import faulty_node
from scripts.daemons import Daemon, formed, until
from scripts.workload import agreed, completed, submit, under_way, up
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(150)]


async def test_a_full_disk_stops_its_node_and_loses_nothing(lan_of: LanFactory) -> None:
    lan = lan_of(3, small_disks={"h3": 16})
    everyone = list(lan.daemons.values())
    await up(everyone)
    victim = lan.daemons["h3"]
    others = [one for one in everyone if one is not victim]
    job = await submit(victim, pieces=9)
    await under_way(victim, job)
    lan.fill_disk("h3")

    async def gave_up() -> bool:
        return not victim.running

    await until(gave_up, 30.0, "the node whose disk is full ends: it could not keep its word")
    assert victim.process is not None
    assert victim.process.returncode not in (0, ExitCode.INTERRUPTED)
    said = victim.output.read_text()
    assert "disk" in said
    assert "Traceback" not in said
    await completed(others[0], job)
    lan.free_disk("h3")
    victim.start()
    await up(everyone)
    await agreed(everyone, [job])


async def test_clocks_that_jump_do_not_matter(lan_of: LanFactory) -> None:
    """One clock an hour ahead and one two hours back, in the middle of a job: nobody is suspected for it."""
    shifts = {"h1": "3600", "h2": "-7200", "h3": "86400"}
    lan = lan_of(3, entry=faulty_node.ENTRY, environments={h: {"KITH_JUMP_S": s} for h, s in shifts.items()})
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    token = (await leader.status()).leader
    job = await submit(leader, pieces=9)
    await under_way(leader, job)
    for host in ("h1", "h2"):
        lan.daemons[host].send(signal.SIGUSR2)
    await completed(leader, job)
    second = await submit(lan.daemons["h2"], 4, "river")
    await completed(lan.daemons["h2"], second)
    assert (await leader.status()).leader == token, "the leader stayed"
    await formed(everyone)
    await agreed(everyone, [job, second])


async def test_a_node_returns_with_its_clock_in_the_past(lan_of: LanFactory) -> None:
    """A board without a battery clock: after each start it lives in another day, after a crash or after a goodbye.

    As long as the certificates are valid by its clock, that is nothing; else it is alone, says why, and comes back.
    """
    lan = lan_of(3, entry=faulty_node.ENTRY, start=False)
    assert lan.mesh is not None
    for one in lan.daemons.values():
        lan.mesh.enrol(one.data_dir, starts_s=-2.0 * 86400)
    lan.start()
    everyone = list(lan.daemons.values())
    leader = await up(everyone)
    victim = next(one for one in everyone if one is not leader)
    jobs = []
    for days, stop in ((-1, victim.kill), (20, victim.end), (-1, victim.kill)):
        stop()
        start_shifted(victim, days)
        await up(everyone)
        jobs.append(await submit(victim, 3, f"river{days}"))
        await completed(leader, jobs[-1])
    await agreed(everyone, jobs)
    victim.kill()
    start_shifted(victim, 400)
    await up([victim])
    log = victim.data_dir / "logs" / "kith.log"

    async def said_why() -> bool:
        return "its certificate expired" in log.read_text()

    await until(said_why, 20.0, "it says that certificates have expired by its clock")
    victim.kill()
    start_shifted(victim, 0)
    await up(everyone)
    await agreed(everyone, jobs)


def start_shifted(victim: Daemon, days: int) -> None:
    victim.environment = {**victim.environment, "KITH_SHIFT_S": f"{days * 86400}"}
    victim.start()
