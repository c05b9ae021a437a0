"""Run one seed, or many: `python -m tests.sim.run --seed N [--story]`, `python -m tests.sim.run --seeds A-B`.

A seed decides everything: the number of nodes, the network, the disks, what is said, what breaks and when. So a seed
that fails once fails always, and its story can be read.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.sim.record import Record
from tests.sim.result import STORY_LINES_SHOWN, SimResult, figures_of
from tests.sim.world import World

#: Worlds at a time where nothing else is said: one a core.
PROCESSES = os.cpu_count() or 1
#: The tests run worlds of at most so many nodes: larger ones take minutes each, and `scripts/bench sim` has them.
NODES_MAX = 200
#: A large world keeps millions of objects: looking through them for cycles at the usual pace costs a tenth of the time.
COLLECTED_AFTER = (50_000, 20, 100)


def run_seed(seed: int, nodes: int | None = None) -> SimResult:
    """Live through the world of `seed`. Never raises for a broken invariant: it reports it."""
    result = SimResult(seed)
    began = time.process_time()
    world = World(seed, nodes)
    try:
        result.problems = world.run()
    except Exception:
        result.problems = [f"at {world.clock.now:.3f}: {traceback.format_exc()}"]
    live = world.live
    result.nodes, result.live = len(world.hosts), len(live)
    result.facts = len(live[0].disk.content.facts) if live else 0
    result.events = world.checks.events
    result.faults = world.checks.faults
    result.messages = world.network.messages
    result.leader_changes = world.checks.leader_changes
    result.story = world.checks.story
    result.virtual_s = world.clock.now
    result.cpu_s = time.process_time() - began
    return result


def run_seeds(seeds: Sequence[int], processes: int, record: Record | None = None) -> Iterator[SimResult]:
    """All of them, in any order. Stories of seeds that held are left out. With a record: those in it are not run."""
    if record is not None:
        yield from record.results(seeds)
        for result in run_seeds(record.missing(seeds), processes):
            record.keep(result)
            yield result
        return
    if processes <= 1:
        yield from map(_run_one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, gc.set_threshold, COLLECTED_AFTER, 200) as pool:
        yield from pool.imap_unordered(_run_one, seeds)


def _run_one(seed: int) -> SimResult:
    result = run_seed(seed)
    gc.collect()  # a world is one large cycle, and the next one would be made beside it
    result.story = [] if result.ok else result.story[-STORY_LINES_SHOWN:]
    return result


def range_of(text: str) -> range:
    """`A-B`: from A to B, both."""
    first, last = (int(part) for part in text.split("-"))
    return range(first, last + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="run one seed")
    parser.add_argument("--seeds", metavar="A-B", help="run a range of seeds")
    parser.add_argument("--nodes", type=int, help="with --seed: so many nodes instead of what the seed says")
    parser.add_argument("--processes", type=int, default=1, help="run so many seeds at a time; 0: one a core")
    parser.add_argument("--story", action="store_true", help="with --seed: print all that happened")
    parser.add_argument("--no-rate", action="store_true", help="leave out what differs from run to run: the speed")
    parser.add_argument(
        "--record", metavar="FILE", type=Path, help="with --seeds: go on where FILE ends, and keep there"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write figures and failures there")
    options = parser.parse_args(arguments)
    if options.seeds is None:
        return _main_one(options)
    seeds = range_of(options.seeds)
    wall = time.perf_counter()
    results: list[SimResult] = []
    record = Record(options.record) if options.record else None
    for result in run_seeds(seeds, options.processes or PROCESSES, record):
        results.append(result)
        if not result.ok:
            print(
                f"seed {result.seed} ({result.nodes} nodes): {result.problems[0].strip().splitlines()[-1]}", flush=True
            )
    results.sort(key=lambda result: result.seed)
    figures = figures_of(results)
    failed = [result.seed for result in results if not result.ok]
    print(f"{len(results)} seeds, {len(failed)} failed {failed[:50]}")
    print(", ".join(f"{name} {value:g}" for name, value in figures.items()))
    if record is not None and (others := record.other_code(seeds)):
        print(f"{others} of them ran on other code than this")
    if not options.no_rate:
        print(f"{time.perf_counter() - wall:.0f} s of wall time")
    if options.json:
        failures = [
            {"seed": result.seed, "nodes": result.nodes, "problems": result.problems, "story": result.story[-40:]}
            for result in results
            if not result.ok
        ]
        options.json.write_text(json.dumps({"figures": figures, "failures": failures}, indent=1))
    return 1 if failed else 0


def _main_one(options: argparse.Namespace) -> int:
    result = run_seed(options.seed if options.seed is not None else 1, options.nodes)
    if options.story:
        print("\n".join(result.story))
    if not result.ok:
        print(result.describe())
    print(
        f"seed {result.seed}: {result.nodes} nodes, {result.live} live at the end, {result.faults} faults, "
        f"{result.events} events, {result.messages} messages, {result.facts} facts, "
        f"{len(result.problems)} problems in {result.virtual_s:.0f} virtual s"
    )
    if not options.no_rate:
        print(f"{result.cpu_s:.1f} s of CPU, {result.virtual_s / result.cpu_s:.0f} virtual s a second of CPU")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
