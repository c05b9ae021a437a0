"""How fast the mesh takes facts of one author: a quota delays what is too much, and never drops it for good.

Idea: of a push, the facts of an author that is over its quota are left out from the first of each stream on, as if the
push had ended there. What was left out is still missing here, so the next exchange of positions (mesh/gossip.py) asks
for it again: the mesh takes the stream at the quota's pace, and all nodes still hold the same facts in the end. Every
node counts for itself, by author and not by sender: a flood gets no faster by other ways.

Threat: a member that fills every disk, and the memory of every node, before anybody can revoke it.

Not guaranteed: that nothing is sent in vain. What is over the quota comes again with every exchange, a push at a time.
"""

from collections.abc import Callable, Sequence

from mesh.facts import Fact, Retired, StreamId
from mesh.identity import NodeId
from mesh.rate import Rate
from node.limits import FACT_BYTES_BURST, FACT_BYTES_PER_S, FACTS_BURST, FACTS_PER_S
from node.logs import log
from node.once import Once

#: An author over its quota is logged again after this.
LOG_AGAIN_S = 600.0


class FactQuotas:
    """Args: `me`: whose own facts have no quota; `is_new`: whether this node lacks a fact, only such count."""

    def __init__(
        self, me: NodeId, is_new: Callable[[Fact], bool], facts: Rate | None = None, size: Rate | None = None
    ) -> None:
        self._me = me
        self._is_new = is_new
        self._facts = facts or Rate(FACTS_PER_S, FACTS_BURST)
        self._bytes = size or Rate(FACT_BYTES_PER_S, FACT_BYTES_BURST)
        self._once = Once(LOG_AGAIN_S)

    def within(
        self, facts: Sequence[Fact], retired: Sequence[Retired], now: float
    ) -> tuple[tuple[Fact, ...], tuple[Retired, ...]]:
        """What is taken of a push, in its order: of each stream all, or a beginning."""
        kept: list[Fact] = []
        cut: set[StreamId] = set()
        for fact in facts:
            if fact.stream_id in cut:
                continue
            if self._is_over(fact, now):
                cut.add(fact.stream_id)
                if self._once.due(fact.author):
                    log("warning", f"{fact.author} says more than its quota: its facts are taken slowly")
                continue
            kept.append(fact)
        # A retired range counts by the fact after it, which may be among those that were left out.
        return tuple(kept), tuple(gone for gone in retired if gone.stream_id not in cut)

    def _is_over(self, fact: Fact, now: float) -> bool:
        # A denial is what ends a flood: it never waits. The CA signed it, and their number has a bound of its own.
        if fact.author == self._me or fact.kind == "deny" or not self._is_new(fact):
            return False
        return bool(self._facts.wait_s(fact.author, now) or self._bytes.wait_s(fact.author, now, len(fact.raw)))
