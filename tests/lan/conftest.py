"""LANs of real daemons for the tests of this folder. When a test fails, what its daemons logged is kept and named."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from scripts.lan_hosts import Lan
from scripts.lan_network import why_not

LanFactory = Callable[..., Lan]

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.stash[_failed] = True
    return report


@pytest.fixture
def lan_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LanFactory]:
    """Makes a LAN of so many hosts with echo engines, daemons started; takes it down after the test.

    `lan_of(3, pace=60.0)`: tokens a second of each engine. `environment` and `entry` are for all daemons; of
    `environments` and `small_disks` (megabytes) each is for the host that it names.
    """
    if problem := why_not():
        pytest.skip(f"{problem[0]}; {problem[1]}")
    made: list[Lan] = []

    def make(
        count: int,
        *options: str,
        pace: float = 60.0,
        entry: Sequence[str] = (),
        environments: Mapping[str, Mapping[str, str]] | None = None,
        small_disks: Mapping[str, int] | None = None,
        start: bool = True,
    ) -> Lan:
        lan = Lan.create(count, ["--engine", "echo", *options], environment={"KITH_ECHO_TOKENS_PER_S": f"{pace}"})
        made.append(lan)
        for host, daemon in lan.daemons.items():
            daemon.entry = entry or daemon.entry
            daemon.environment = {**daemon.environment, **(environments or {}).get(host, {})}
        for host, megabytes in (small_disks or {}).items():
            lan.small_disk(host, megabytes)
        if start:
            lan.start()
        return lan

    yield make
    for lan in made:
        if request.node.stash.get(_failed, False):
            _keep_logs(lan, tmp_path)
        lan.down()


def _keep_logs(lan: Lan, folder: Path) -> None:
    for host, daemon in lan.daemons.items():
        for path in (daemon.output, daemon.data_dir / "logs" / "kith.log"):
            if path.exists():
                shutil.copy(path, folder / f"{host}-{path.name}")
    print(f"the daemons' logs: {folder}")
