"""What /v1/responses keeps, so that `previous_response_id` can go on from it.

Idea: a dialogue is held by this node, in memory, for a while; a client that goes on sends its new words only. It is
bounded by number, bytes and time, and each caller by a part of these.

Threat: a client that fills the memory, that pushes others' dialogues out, or that reads another's: an id is random,
and good for the caller only who made it.

Not guaranteed: anything beyond HELD_S, a restart of the node, or another node. A client that is told "not found" sends
the dialogue again.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.wire import engine_pb2

#: Since it was made or gone on from, seconds.
HELD_S = 3600.0
#: Of all callers, and of one.
NUMBER_MAX, NUMBER_OF_ONE_MAX = 1024, 256
BYTES_MAX, BYTES_OF_ONE_MAX = 64 << 20, 16 << 20


@dataclass
class Held:
    """A response that was made."""

    who: Hashable
    body: dict[str, Any]  # as the client got it
    messages: Sequence[engine_pb2.ChatMessage]  # the dialogue up to its end, without instructions
    size: int  # bytes
    used_at: float = field(default=0.0)


class ResponseStore:
    """Args: `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: OrderedDict[str, Held] = OrderedDict()  # longest unused first

    def put(
        self, response_id: str, who: Hashable, body: dict[str, Any], messages: Sequence[engine_pb2.ChatMessage]
    ) -> None:
        """Keep it. What is too large for one caller's part is not kept."""
        size = sum(message.ByteSize() for message in messages) + len(str(body))
        if size > BYTES_OF_ONE_MAX:
            return
        self._held[response_id] = Held(who, body, messages, size, self._clock())
        self._shrink(who)

    def get(self, response_id: str, who: Hashable) -> Held | None:
        """What the same caller made and is still here."""
        self._expire()
        held = self._held.get(response_id)
        if held is None or held.who != who:
            return None
        held.used_at = self._clock()
        self._held.move_to_end(response_id)
        return held

    def remove(self, response_id: str, who: Hashable) -> bool:
        """Whether it was there."""
        if self.get(response_id, who) is None:
            return False
        del self._held[response_id]
        return True

    def __len__(self) -> int:
        return len(self._held)

    def _expire(self) -> None:
        since = self._clock() - HELD_S
        while self._held:
            response_id, oldest = next(iter(self._held.items()))
            if oldest.used_at > since:
                return
            del self._held[response_id]

    def _shrink(self, who: Hashable) -> None:
        self._expire()
        own = [response_id for response_id, held in self._held.items() if held.who == who]
        size = sum(self._held[response_id].size for response_id in own)
        while len(own) > NUMBER_OF_ONE_MAX or size > BYTES_OF_ONE_MAX:
            size -= self._held.pop(own.pop(0)).size
        total = sum(held.size for held in self._held.values())
        while len(self._held) > NUMBER_MAX or total > BYTES_MAX:
            total -= self._held.popitem(last=False)[1].size
