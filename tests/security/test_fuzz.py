"""Everything that reads what others wrote survives 20,000 inputs of a known seed, and so do the doors of a node."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mesh.certificates import Role
from node.credentials import Credentials
from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh
from tests.security.door_fuzzing import Doors
from tests.security.fuzzing import fuzz, targets_in

SEED = 20261122
INPUTS = 20_000
DOOR_INPUTS = 600
#: Growth of memory that is no leak: caches with bounds, and what Python keeps for itself.
GROWTH_BYTES_MAX = 48 << 20


def test_no_input_crashes_a_decoder_or_a_machine_and_memory_does_not_grow(tmp_path: Path) -> None:
    me = psutil.Process()
    warm = fuzz(INPUTS // 4, SEED + 1, tmp_path)
    gc.collect()
    before = me.memory_info().rss
    outcome = fuzz(INPUTS - DOOR_INPUTS, SEED, tmp_path)
    gc.collect()
    assert outcome.inputs == INPUTS - DOOR_INPUTS
    crashes = warm.crashes + outcome.crashes
    assert not crashes, f"{len(crashes)} crashes, the first:\n{crashes[0]}"
    assert me.memory_info().rss - before < GROWTH_BYTES_MAX


def test_every_target_finds_what_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that can not fail is worth nothing: a decoder that raises is seen, with its seed."""
    names = {target.name for target in targets_in(tmp_path, SEED)}
    assert len(names) >= 15

    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("tests.security.fuzzing.parse", broken)
    outcome = fuzz(50, SEED, tmp_path, only="facts")
    assert outcome.crashes
    assert "planted" in outcome.crashes[0]
    assert f"seed {SEED}" in outcome.crashes[0]


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    mesh = ThrowawayMesh()
    options = ["--listen", "127.0.0.1:0", "--no-mdns", "--engine", "echo", "--threads", "1", "--http", "127.0.0.1:0"]
    node = Daemon(tmp_path / "node", options, name="node", mesh=mesh)
    node.start()
    try:
        status = asyncio.run(node.ready())
        yield Doors(
            node,
            Credentials(mesh.enrol(tmp_path / "attacker", Role.NODE)),
            status.addresses[0].port,
            int(status.http_address.rpartition(":")[2]),
        )
    finally:
        wrong = end_all([node])
    assert not wrong, wrong


async def test_no_nonsense_at_a_door_hurts_the_node(doors: Doors) -> None:
    assert await doors.attack(DOOR_INPUTS, SEED) >= DOOR_INPUTS
    await doors.is_well()
