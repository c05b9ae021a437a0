"""The part `fuzz` of the bench security: a million inputs for everything that reads what others wrote.

KITH_BENCH_FUZZ_INPUTS chooses another number, KITH_BENCH_SEED another seed. One in a hundred goes to the doors of a
running node, through real sockets. `fuzz_crashes` counts exceptions that no caller expects, and nodes that are not well
afterwards; the first of each kind is printed with its seed. `fuzz_growth_mb`: memory of this process after the inputs,
less that after a tenth of them.
"""

import asyncio
import gc
import logging
import tempfile
from pathlib import Path

import psutil

from mesh.certificates import Role
from node import logs
from node.credentials import Credentials
from scripts.benches import size
from scripts.daemons import Daemon, end_all
from scripts.throwaway import ThrowawayMesh
from tests.security.door_fuzzing import Doors
from tests.security.fuzzing import fuzz

INPUTS = 1_000_000
#: Inputs at a time: each block has a seed of its own.
BLOCK = 20_000
KINDS_PRINTED = 10


def figures() -> dict[str, float]:
    wanted, seed = size("fuzz_inputs", INPUTS), size("seed", 1)
    at_doors = wanted // 100
    crashes: list[str] = []
    inputs, first_rss = 0, 0
    me = psutil.Process()
    logs.logger.addHandler(logging.NullHandler())  # refusals by the thousand, as they should be
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as name:
        folder = Path(name)
        while inputs < wanted - at_doors:
            outcome = fuzz(min(BLOCK, wanted - at_doors - inputs), seed + inputs // BLOCK, folder)
            inputs += outcome.inputs
            crashes += outcome.crashes
            if not first_rss and inputs >= wanted // 10:
                gc.collect()
                first_rss = me.memory_info().rss
        gc.collect()
        growth = me.memory_info().rss - first_rss
        try:
            inputs += asyncio.run(_doors(folder, at_doors, seed))
        except AssertionError as error:
            crashes.append(f"doors, seed {seed}\n{error}")
    kinds = {crash.partition(",")[0] + crash.strip().rpartition("\n")[2]: crash for crash in reversed(crashes)}
    for crash in list(kinds.values())[:KINDS_PRINTED]:
        print(crash)
    return {"fuzz_inputs": inputs, "fuzz_crashes": len(crashes), "fuzz_growth_mb": round(growth / 1e6, 1)}


async def _doors(folder: Path, count: int, seed: int) -> int:
    mesh = ThrowawayMesh()
    options = ["--listen", "127.0.0.1:0", "--no-mdns", "--engine", "echo", "--http", "127.0.0.1:0"]
    node = Daemon(folder / "node", options, name="node", mesh=mesh)
    node.start()
    try:
        status = await node.ready()
        doors = Doors(
            node,
            Credentials(mesh.enrol(folder / "attacker", Role.NODE)),
            status.addresses[0].port,
            int(status.http_address.rpartition(":")[2]),
        )
        sent = await doors.attack(count, seed)
        await doors.is_well()
        return sent
    finally:
        wrong = end_all([node])
        assert not wrong, wrong
