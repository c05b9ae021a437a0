"""How long a member stays suspect before it is dead: long on one node's word, short once others say the same.

Idea: start with the longest time. Each independent confirmation brings it down, on a logarithm, so that the first
ones count most, to the shortest at `confirmations`. A suspect that is really gone is confirmed within a probe or two; a
suspicion that is the suspecting node's own fault is not, and leaves time to be denied.

Source: Lifeguard (see awareness.py), section IV.C; hashicorp/memberlist, suspicion.go.
"""

import math
from dataclasses import dataclass, field

from mesh.identity import NodeId


@dataclass
class Suspicion:
    """Invariant: `said_by` holds at most confirmations + 1 nodes, the first of them the accuser."""

    accuser: NodeId
    started_at: float
    min_s: float
    max_s: float
    confirmations: int
    said_by: list[NodeId] = field(init=False)
    timeout_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.said_by = [self.accuser]
        self.timeout_s = self._timeout_s()

    def confirm(self, node_id: NodeId) -> bool:
        """Count another node's word. Returns whether it was news: it is then worth passing on."""
        if node_id in self.said_by or len(self.said_by) > self.confirmations:
            return False
        self.said_by.append(node_id)
        self.timeout_s = self._timeout_s()
        return True

    def least_is_over(self, now: float) -> bool:
        """Whether it would have ended by now had enough others said the same."""
        return now > self.started_at + self.min_s

    @property
    def ends_at(self) -> float:
        return self.started_at + self.timeout_s

    def _timeout_s(self) -> float:
        """max - log(n + 1) / log(k + 1) × (max - min) after n of k confirmations, at least min; min where k is 0."""
        if self.confirmations < 1:
            return self.min_s
        counted = len(self.said_by) - 1
        part = math.log(counted + 1) / math.log(self.confirmations + 1)
        return max(self.min_s, self.max_s - part * (self.max_s - self.min_s))
