"""What a planted bug is. A check that no planted bug trips proves nothing.

Each bug is a patch of this process only (no switch in the product), says how its trace looks, and in how many seeds at
most it must be seen; the same seeds hold without it, as test_sim.py runs them.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.run import NODES_MAX, run_seed
from tests.sim.world import size_of_seed

#: Replaces an attribute of a class or module, as `setattr` does.
Patch = Callable[[object, str, object], None]


@dataclass(frozen=True)
class Bug:
    name: str
    plant: Callable[[Patch], None]
    seen_as: str  # a pattern in the problems
    seeds: int  # seen within so many seeds
    first: int  # from this one on

    def tried(self) -> list[int]:
        """Its seeds, less the worlds that are too large for the tests."""
        seeds = range(self.first, self.first + self.seeds)
        return [seed for seed in seeds if size_of_seed(seed) <= NODES_MAX]


BUGS: list[Bug] = []


def bug(seen_as: str, seeds: int = 10, first: int = 1) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS.append(Bug(plant.__name__, plant, seen_as, seeds, first))
        return plant

    return note


def all_bugs() -> list[Bug]:
    """Every bug there is, in the order of the files."""
    for name in ("planted", "planted_copies", "planted_denials"):
        importlib.import_module(f"tests.sim.{name}")  # it adds its own
    return BUGS


@dataclass
class Search:
    """What came of looking for a planted bug."""

    name: str
    seen_after: int = 0  # how many of its seeds; 0: it is in none
    others: list[str] = field(default_factory=list)  # problems that are not the bug's


def look_for(name: str) -> Search:
    """Look for the bug of this name in its seeds. For a process of its own: what is planted stays."""
    bug = next(bug for bug in all_bugs() if bug.name == name)
    bug.plant(setattr)
    search = Search(name)
    for count, seed in enumerate(bug.tried(), 1):
        problems = run_seed(seed).problems
        if any(re.search(bug.seen_as, problem) for problem in problems):
            search.seen_after = count
            break
        search.others += problems
    return search
