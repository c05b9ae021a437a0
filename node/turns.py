"""Whose turn it is at the engine: a fair queue in front of it, with one part for each caller.

Idea: an engine serves requests in the order in which they come, so whoever sends many is served first for long. Here a
request waits with those of its own caller; when a place becomes free, the caller with the fewest requests in the engine
is next, and of those the one that was served longest ago. A place is kept for everybody who asked lately and has none:
who has one gets another only beyond those. So the next short request of somebody else finds a place free; a caller
alone gets all places.

Threat: one member, or one HTTP client, that sends ten thousand requests. Its own wait; another's waits for one place at
most, and the queue has an end: what does not fit is told when to come again.

Not guaranteed: anything about requests that are in the engine already: they are not interrupted. With a single place,
another's request waits until the one that runs is done.

Source: start-time fair queueing, Goyal, Vin and Cheng (1996), in its simplest form.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field

from node.errors import ExitCode, KithError
from node.limits import WAITING_MAX, WAITING_OF_ONE_MAX
from node.waited import too_late

#: A caller that asked within this time is somebody for whom a place is kept free.
LATELY_S = 10.0
#: Seconds that a request is thought to take, before any was seen.
GUESS_S = 1.0
#: Weight of the newest duration in the mean.
NEWEST = 0.2


@dataclass
class _Caller:
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)
    running: int = 0
    served: int = 0  # the number of its last turn: the least was served longest ago
    asked_at: float = float("-inf")


class Turns:
    """Args: `places`: how many requests the engine serves at once; asked whenever it matters, at least 1."""

    def __init__(self, places: Callable[[], int], clock: Callable[[], float]) -> None:
        self._places = places
        self._clock = clock
        self._callers: OrderedDict[Hashable, _Caller] = OrderedDict()
        self._turn = 0
        self._running = 0
        self._waiting = 0
        self._mean_s = GUESS_S

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def running(self) -> int:
        return self._running

    @contextlib.asynccontextmanager
    async def of(self, who: Hashable, within_s: float = 0.0) -> AsyncIterator[float]:
        """Wait for a turn and hold it; yields how long that took, seconds. Raises `KithError`: `busy` where too many
        wait already, `too-late` where no turn came within `within_s` (0: wait for ever)."""
        asked = self._clock()
        await self._get(who, within_s)
        began = self._clock()
        try:
            yield began - asked
        finally:
            self._mean_s += NEWEST * (self._clock() - began - self._mean_s)
            self._give_back(who)

    async def _get(self, who: Hashable, within_s: float) -> None:
        self._forget_idle()
        caller = self._callers.setdefault(who, _Caller())
        caller.asked_at = self._clock()
        if len(caller.waiting) >= WAITING_OF_ONE_MAX or self._waiting >= WAITING_MAX:
            raise self._busy(len(caller.waiting))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller.waiting.append(turn)
        self._waiting += 1
        self._next()
        try:
            async with asyncio.timeout(within_s or None):
                await turn
        except (asyncio.CancelledError, TimeoutError) as error:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self._give_back(who)
            elif turn in caller.waiting:
                caller.waiting.remove(turn)
                self._waiting -= 1
            if isinstance(error, TimeoutError):
                raise too_late(within_s, "no turn came") from None
            raise

    def _give_back(self, who: Hashable) -> None:
        self._callers[who].running -= 1
        self._running -= 1
        self._next()

    def _next(self) -> None:
        """Give away the places that are free."""
        places = max(1, self._places())
        while self._running < places and self._waiting:
            free = places - self._running
            able = [one for one in self._callers.values() if one.waiting and not self._kept_free(one, free)]
            if not able:
                return
            caller = min(able, key=lambda one: (one.running, one.served))
            turn = caller.waiting.popleft()
            self._waiting -= 1
            if turn.cancelled():  # it left in this very moment, and has not run since
                continue
            self._turn += 1
            caller.served = self._turn
            caller.running += 1
            self._running += 1
            turn.set_result(None)

    def _kept_free(self, caller: _Caller, free: int) -> bool:
        """Whether what is free is kept for others than `caller`, who has a place already."""
        if caller.running == 0:
            return False
        since = self._clock() - LATELY_S
        absent = sum(other.running == 0 and other.asked_at > since for other in self._callers.values())
        return free <= absent

    def _forget_idle(self) -> None:
        """Callers that have nothing here and did not ask lately; each call looks at the oldest only."""
        since = self._clock() - LATELY_S
        while self._callers:
            who, oldest = next(iter(self._callers.items()))
            if oldest.running or oldest.waiting:
                self._callers.move_to_end(who)
                return
            if oldest.asked_at > since and len(self._callers) < 2 * WAITING_MAX:
                return
            del self._callers[who]

    def _busy(self, own: int) -> KithError:
        ahead = max(own, self._waiting)
        after_s = min(60.0, max(0.5, self._mean_s * ahead / max(1, self._places())))
        return KithError(
            "busy",
            f"{ahead} requests already wait for this engine",
            f"Ask again in {after_s:.0f} s, or another node.",
            ExitCode.UNAVAILABLE,
            after_s,
        )
