"""Bugs to plant in who holds copies of a result; what a bug is: planting.py."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.copies import Copies, _offers
from mesh.effects import Effect
from mesh.identity import NodeId
from mesh.wire import common_pb2
from tests.sim.planting import Patch, bug


@bug("announces")
def a_result_waits_for_no_copies(patch: Patch) -> None:
    patch(Copies, "enough", lambda *_: True)


@bug("announces|nodes, it is on", 20, first=101)
def receipts_outlive_their_use(patch: Patch) -> None:
    """Found by the simulator: a copy that was dropped with its first job counted for the same content again. As it was
    then: a receipt promises nothing either, which hides it for a minute."""
    patch(Copies, "push", _push_without_asking_again)
    patch(Copies, "want", _want_without_forgetting)
    patch(Copies, "is_promised", lambda _copies, _sha256, _now: False)


def _push_without_asking_again(
    self: Copies, refs: Sequence[common_pb2.BlobRef], until: float, now: float
) -> list[Effect]:
    offers: dict[NodeId, list[common_pb2.BlobRef]] = {}
    for ref in refs:
        self._pushed[ref.sha256] = max(until, self._pushed.get(ref.sha256, 0.0))
        self._tries.pop(ref.sha256, None)
        self._check(ref.sha256, now, offers)
    return _offers(offers)


_want = Copies.want


def _want_without_forgetting(self: Copies, owner: bytes, refs: Sequence[common_pb2.BlobRef], now: float) -> None:
    before = {sha256: dict(said) for sha256, said in self.held_by.items()}
    _want(self, owner, refs, now)
    for sha256, said in before.items():
        self.held_by.setdefault(sha256, said)
