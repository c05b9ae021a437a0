"""What seeds came to, kept in a file, so that a long range can be lived through in many sittings and by many machines.

Idea: one JSON object a line, appended as each seed ends, with the hash of the code that it ran on. A seed that is there
is not run again; where it ran on other code it still counts, and `other_code` says how many do. Files of several
machines are joined by `cat`; of two lines about one seed the last counts, and a line that was cut short is none.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.sim.result import SimResult

ROOT = Path(__file__).parents[2]
STORY_LINES_KEPT = 40


@functools.cache
def code() -> str:
    """Names the machines and the simulator as they are now."""
    sources = sorted([*ROOT.glob("mesh/**/*.py"), *ROOT.glob("tests/sim/*.py")])
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources)).hexdigest()[:12]


class Record:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[int, dict[str, object]] = {}  # by seed
        text = path.read_text() if path.exists() else ""
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                kept = json.loads(line)
            except ValueError:
                continue  # cut short
            self.lines[kept["seed"]] = kept

    def missing(self, seeds: Iterable[int]) -> list[int]:
        """Of these, the ones that were never lived through."""
        return [seed for seed in seeds if seed not in self.lines]

    def keep(self, result: SimResult) -> None:
        line = dataclasses.asdict(result) | {"code": code(), "story": result.story[-STORY_LINES_KEPT:]}
        self.lines[result.seed] = line
        with self.path.open("a") as file:
            file.write("\n" * self._torn + json.dumps(line) + "\n")
        self._torn = False

    def results(self, seeds: Iterable[int]) -> Iterator[SimResult]:
        """What is known of these."""
        names = {field.name for field in dataclasses.fields(SimResult)}
        for seed in seeds:
            if seed in self.lines:
                yield SimResult(**{name: value for name, value in self.lines[seed].items() if name in names})  # type: ignore[arg-type]

    def other_code(self, seeds: Iterable[int]) -> int:
        """How many of these ran on other code than this."""
        return sum(1 for seed in seeds if seed in self.lines and self.lines[seed]["code"] != code())
