"""What a planted bug is. A check that no planted bug trips proves nothing.

Each bug is a patch of this process only (no switch in the product), says how its trace looks, and in how many seeds at
most it must be seen; the same seeds hold without it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

#: Replaces an attribute of a class or module until the bug is taken out again.
Patch = Callable[[object, str, object], None]


@dataclass(frozen=True)
class Bug:
    name: str
    plant: Callable[[Patch], None]
    seen_as: str  # a pattern in the problems
    seeds: int  # seen within so many seeds
    first: int  # from this one on


BUGS: list[Bug] = []


def bug(seen_as: str, seeds: int = 10, first: int = 1) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS.append(Bug(plant.__name__, plant, seen_as, seeds, first))
        return plant

    return note


def all_bugs() -> list[Bug]:
    """Every bug there is, in the order of the files."""
    for name in ("planted", "planted_denials"):
        importlib.import_module(f"tests.sim.{name}")  # it adds its own
    return BUGS
