"""How well this node itself is, judged by how its probes fare: a slow node gives the others more time.

Idea: a node that misses answers which it should have had is probably the slow one itself. Its score grows, and with it
its own probe interval and timeout, so that a busy laptop does not call its neighbours dead.

Source: Dadgar, Phillips and Currey, "Lifeguard: SWIM-ing with situational awareness" (2017), section IV.A;
hashicorp/memberlist, awareness.go.
"""

from dataclasses import dataclass


@dataclass
class Awareness:
    """Invariant: 0 <= score <= score_max. 0 is healthy."""

    score_max: int
    score: int = 0

    def apply(self, delta: int) -> None:
        """A good answer is -1, each missing one +1, having been suspected +1."""
        self.score = min(self.score_max, max(0, self.score + delta))

    def scale(self, seconds: float) -> float:
        """How long `seconds` are for a node as well as this one: × (score + 1)."""
        return seconds * (self.score + 1)
