"""What living through one seed came to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

STORY_LINES_SHOWN = 120


@dataclass
class SimResult:
    """`problems` is empty when all held."""

    seed: int
    nodes: int = 0
    live: int = 0
    events: int = 0
    faults: int = 0
    messages: int = 0
    facts: int = 0
    leader_changes: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def describe(self) -> str:
        """For people: what failed, the end of the story, and how to see it again."""
        lines = [f"seed {self.seed}: {self.nodes} nodes, {self.live} live at the end, {self.events} events"]
        if len(self.story) > STORY_LINES_SHOWN:
            lines.append(f"… {len(self.story) - STORY_LINES_SHOWN} earlier lines: add --story")
        lines += self.story[-STORY_LINES_SHOWN:]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        lines.append(f"replay: scripts/test --seed {self.seed}")
        return "\n".join(lines)


def figures_of(results: Sequence[SimResult]) -> dict[str, float]:
    """What a range of seeds came to; the same names as `scripts/bench sim` gives."""
    virtual_s = sum(result.virtual_s for result in results)
    cpu_s = sum(result.cpu_s for result in results)
    return {
        "seeds": len(results),
        "violations": sum(1 for result in results if not result.ok),
        "virtual_hours": round(virtual_s / 3600.0, 2),
        "faults": sum(result.faults for result in results),
        "events": sum(result.events for result in results),
        "nodes_max": max((result.nodes for result in results), default=0),
        "virtual_s_per_cpu_s": round(virtual_s / max(1e-9, cpu_s), 1),
        "cpu_s_per_seed": round(cpu_s / max(1, len(results)), 2),
    }
