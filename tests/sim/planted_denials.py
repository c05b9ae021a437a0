"""Bugs to plant in what a revocation does; what a bug is: planting.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh import denials
from mesh.election import Election
from mesh.intake import Intake
from mesh.journal import Journal
from mesh.membership import Membership
from tests.sim.planting import Patch, bug


@bug("is_void|of them count", 40)
def a_denied_nodes_tail_is_kept(patch: Patch) -> None:
    """The journal refuses what comes after a denial, and leaves what came before it in place."""
    patch(Journal, "deny", lambda *_: {})


@bug("heeds the token", 40)
def a_denied_leaders_token_is_obeyed(patch: Patch) -> None:
    """Its links end, and its token still counts."""
    patch(Election, "forget", lambda *_: [])
    patch(Intake, "denied", lambda *_: None)


@bug("of them count", 40, first=61)
def the_greatest_limit_counts(patch: Patch) -> None:
    """Of two denials of one node the one that spares more.

    Rare: of the seeds 1 to 120 three show it: 67, 83 and 112.
    """

    def most(lists: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
        names = {name for ends in lists for name in ends}
        return {name: max(ends[name] for ends in lists if name in ends) for name in names}

    patch(denials, "_least", most)


@bug("is_denied|counts one that is denied", 40)
def a_denied_node_comes_back(patch: Patch) -> None:
    """It is taken in again when it dials, or when others speak of it."""
    patch(Membership, "expel", lambda *_: [])
