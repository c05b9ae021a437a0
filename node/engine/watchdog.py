"""Whether an engine process still moves: what its answers mean, and what their absence means.

Why: a frozen engine is worse than a dead one. It holds tasks that never end, and its process looks well.

Idea: two kinds of silence, told apart by the child's reader thread, which does nothing but answer.
- It does not answer at all: it is stopped, or starved of CPU or memory. Nothing honest takes seconds there.
- It answers, is busy, and a count of what it did stands still: a step may really take long (a chunk of a prompt on a
  slow or crowded machine), so what counts as long is scaled by the measured rate. Two threads are counted, each for
  itself: the one that computes (steps), and the one that prepares requests for it.
Either makes it `STALLED` first, which costs a second copy of what it runs, and `HUNG` much later, which ends it.

Does not: ask or kill (`link.py`), or know why it stands still.
"""

from dataclasses import dataclass
from enum import Enum

#: How often the child is asked, seconds: while it has something to do, and while it has not. Both together are less
#: than `OWN_PAUSE_S`.
LOOK_S, REST_S = 0.25, 0.7
#: No answer for so long: stalled.
SILENT_S = 2.0
#: Busy without a step for so long, or for so many measured steps: stalled.
STILL_S, STILL_STEPS = 10.0, 4.0
#: The child is given up after so many measured steps at least: another load may slow a machine down twentyfold.
HANG_STEPS = 20.0
#: A look that comes later than this says that the daemon itself was paused; the child is not blamed for it.
OWN_PAUSE_S = 1.0


class Verdict(Enum):
    MOVES = "moves"
    STALLED = "stalled"
    HUNG = "hung"


@dataclass
class Watchdog:
    """Times are seconds on the caller's clock. Invariant: `answered_at`, `moved_at`, `prepared_at` <= `looked_at`.

    Args:
        frozen_s: without any answer for so long it is hung.
        hang_s: busy without a step for so long it is hung; longer where a step takes long.
        step_s: measured time of the longest step.
    """

    looked_at: float
    frozen_s: float
    hang_s: float
    step_s: float = 0.0
    answered_at: float = 0.0
    moved_at: float = 0.0
    steps: int = -1
    prepared_at: float = 0.0
    prepared: int = -1

    def __post_init__(self) -> None:
        self.answered_at = self.moved_at = self.prepared_at = self.looked_at

    def look(
        self, now: float, answered: bool, busy: bool, steps: int, preparing: bool = False, prepared: int = 0
    ) -> Verdict:
        """Judge. `answered`: since the last look; the others are then what it said."""
        late = now - self.looked_at - OWN_PAUSE_S
        if late > 0:
            self.answered_at += late
            self.moved_at += late
            self.prepared_at += late
        self.looked_at = now
        if answered:
            self.answered_at = now
            if not busy or steps != self.steps:
                self.moved_at, self.steps = now, steps
            if not preparing or prepared != self.prepared:
                self.prepared_at, self.prepared = now, prepared
        silent, still = now - self.answered_at, now - min(self.moved_at, self.prepared_at)
        if silent >= self.frozen_s or still >= max(self.hang_s, HANG_STEPS * self.step_s):
            return Verdict.HUNG
        if silent >= min(SILENT_S, self.frozen_s / 2) or still >= max(STILL_S, STILL_STEPS * self.step_s):
            return Verdict.STALLED
        return Verdict.MOVES
