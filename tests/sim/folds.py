"""What a set of facts says, computed afresh: what every node that holds them must read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.facts import Fact
from mesh.knowledge import Knowledge
from mesh.ledger import Ledger
from mesh.profiles import Profiles

if TYPE_CHECKING:
    from mesh.replica import Replica


def folded(facts: Iterable[Fact]) -> tuple[object, ...]:
    ledger, knowledge, profiles = Ledger(), Knowledge(), Profiles()
    for fact in facts:
        assert ledger.apply(fact) + knowledge.apply(fact) + profiles.apply(fact) <= 1
    return _read(ledger, knowledge, profiles)


def read_of(replica: Replica) -> tuple[object, ...]:
    """What this node reads now; to compare with `folded`."""
    return _read(replica.ledger, replica.knowledge, replica.profiles)


def _read(ledger: Ledger, knowledge: Knowledge, profiles: Profiles) -> tuple[object, ...]:
    items = [item.item_id for item in knowledge.current()]
    return ledger.fingerprint(), items, sorted((node, entry[:2]) for node, entry in profiles.latest.items())
