"""What was refused of peers, in the node's log: the first lines of each in full, then a count.

Idea: every refusal has its reason in the log, and who makes many of them gets few lines. Of each peer the first
`LINES_OF_ONE` different lines of a minute are written as they are; the others, and those that only repeat one, are
counted, and the count is one line when the minute is over.

Threat: a member that is refused a thousand times a second fills the log, and what matters is rotated away.

Does not: know when a minute is over without being asked: `settle` is called now and then, and at the end.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

#: Different lines of one peer that are written in full, in `WINDOW_S`: more than the mesh service has calls.
LINES_OF_ONE = 16
WINDOW_S = 60.0
#: Peers that are counted at once. Of another one, the count of the oldest is written early.
PEERS_MAX = 256
#: Longer lines are cut: a part of them may come from the peer.
LINE_CHARS_MAX = 400


@dataclass
class _Minute:
    began: float
    said: set[str] = field(default_factory=set)
    more: int = 0


class Refused:
    """For any thread. Args: `log` takes a level and a line."""

    def __init__(self, log: Callable[[str, str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._minutes: OrderedDict[str, _Minute] = OrderedDict()  # the oldest first
        self._lock = threading.Lock()

    def say(self, peer: str, line: str) -> None:
        """Something of `peer` was refused; the line names it and says why."""
        self.settle()
        line, now = line[:LINE_CHARS_MAX], self._now()
        with self._lock:
            minute = self._minutes.get(peer)
            if minute is None:
                minute = self._minutes[peer] = _Minute(now)
            if line in minute.said or len(minute.said) >= LINES_OF_ONE:
                minute.more += 1
                return
            minute.said.add(line)
            oldest = self._minutes.popitem(last=False) if len(self._minutes) > PEERS_MAX else None
        self._log("warning", line)
        if oldest is not None:
            self._tell(*oldest)

    def settle(self, *, all_of_them: bool = False) -> None:
        """Write the counts of the minutes that are over, or of all."""
        over = []
        with self._lock:
            now = self._now()
            while self._minutes:
                peer, minute = next(iter(self._minutes.items()))
                if now - minute.began < WINDOW_S and not all_of_them:
                    break
                over.append((peer, minute))
                del self._minutes[peer]
        for peer, minute in over:
            self._tell(peer, minute)

    def _tell(self, peer: str, minute: _Minute) -> None:
        if minute.more:
            self._log("warning", f"… and {minute.more} more refused from {peer} in the last minute")
