"""What is news about members, each passed on a few times along with other messages.

Idea: a rumour is named by the member that it is about; what is said of it is read when it is sent, so it is never
stale. The newest go first; each is sent a number of times that grows with the logarithm of the mesh, then rests.

Source: Das, Gupta and Motivala, "SWIM" (2002), section 4.1; hashicorp/memberlist, queue.go.
"""

from collections import OrderedDict

from mesh.identity import NodeId


class Rumours:
    """Invariant: every count is positive. Bounded by the number of members."""

    def __init__(self) -> None:
        self._left: OrderedDict[NodeId, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def tell(self, about: NodeId, times: int) -> None:
        """There is news; it goes before what is known longer."""
        assert times > 0
        self._left[about] = times
        self._left.move_to_end(about, last=False)

    def forget(self, about: NodeId) -> None:
        self._left.pop(about, None)

    def take(self, count: int) -> list[NodeId]:
        """The next to go along with one message; each counts as sent once."""
        taken: list[NodeId] = []
        for _ in range(min(count, len(self._left))):
            about, left = self._left.popitem(last=False)
            taken.append(about)
            if left > 1:
                self._left[about] = left - 1
        return taken
