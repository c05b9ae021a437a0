"""A death is counted by what a daemon logs of it, however short it is: no look at its view is needed."""

import pytest

from scripts.benches.false_deaths import deaths_logged
from scripts.daemons import until
from tests.conftest import DaemonFactory


@pytest.mark.slow
async def test_a_death_is_found_in_the_log_of_who_saw_it(daemon: DaemonFactory) -> None:
    first = daemon(name="first")
    await first.ready()
    address = (await first.status()).addresses[0]
    second = daemon("--seed", f"{address.host}:{address.port}", name="second")
    await second.ready()

    async def both() -> bool:
        return len(await first.nodes()) == 2

    await until(both, 20.0, "two nodes")
    before = deaths_logged([first])
    second.kill()

    async def logged() -> bool:
        return deaths_logged([first]) > before

    await until(logged, 60.0, "the death is in the log")
    assert deaths_logged([second]) == 0
