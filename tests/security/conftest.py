"""A mesh under attack: real daemons with echo engines, one mesh a test file."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.certificates import Role
from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh
from tests.security.attackers import Place

#: With `debug` the log has the reason of what is dropped silently too: facts that are held already.
OPTIONS = ["--listen", "127.0.0.1:0", "--no-mdns", "--engine", "echo", "--threads", "1", "--log-level", "debug"]


class Besieged:
    """The mesh, its daemons, and folders for attackers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mesh = ThrowawayMesh("secret label")
        self.other_mesh = ThrowawayMesh("another")
        self.daemons: list[Daemon] = []

    def start(self, name: str, role: Role, *arguments: str, pace: float = 0.0) -> Daemon:
        environment = {"KITH_ECHO_TOKENS_PER_S": f"{pace}"} if pace else {}
        one = Daemon(self.folder / name, [*OPTIONS, *arguments], name=name, mesh=self.mesh, environment=environment)
        self.mesh.enrol(one.data_dir, role)
        one.start()
        self.daemons.append(one)
        return one


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    made = Besieged(tmp_path_factory.mktemp("besieged"))
    yield made
    wrong = end_all(made.daemons)
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def place(besieged: Besieged) -> Place:
    """An issuer, so that everything that a node can do is there to be attacked."""
    return asyncio.run(Place.of(besieged.start("issuer", Role.ISSUER), besieged.mesh.authority.ca_der))
