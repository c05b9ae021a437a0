"""Whose turn it is at the engine: a fair queue in front of it, with one part for each caller.

Idea: the engine's own rule (engine/waiting.py) decides already here, because it gets no more requests than it has
slots: the highest priority is next, of those the caller with the fewest requests in the engine, of those the one that
had the least. A place is kept for everybody who asked lately and has none: who has one gets another only beyond those,
however high its priority. So the next short request of somebody else finds a place free; a caller alone gets all
places. And whoever waited for AGED_S goes as if of the highest priority. A timer looks again when a place is kept no
longer; ageing needs none, because it decides only who is first when a place is given.

Threat: one member, or one HTTP client, that sends ten thousand requests, all of them urgent. Its own wait; another's
waits for one place at most, and for AGED_S where it is less urgent and there is a single place. The queue has an end:
what does not fit is told when to come again.

Not guaranteed: anything about requests that are in the engine already: they are not interrupted. With a single place,
another's request waits until the one that runs is done.

Source: start-time fair queueing, Goyal, Vin and Cheng (1996); ageing of priorities is of old operating systems.
"""

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass

from node.engine.waiting import AGED_S, Entry, Waiting
from node.errors import ExitCode, KithError
from node.limits import PRIORITY_MAX, WAITING_MAX, WAITING_OF_ONE_MAX
from node.waited import too_late

#: A caller that asked within this time is somebody for whom a place is kept free.
LATELY_S = 10.0
#: Seconds that a request is thought to take, before any was seen.
GUESS_S = 1.0
#: Weight of the newest duration in the mean.
NEWEST = 0.2


@dataclass
class _Caller:
    waiting: int = 0
    running: int = 0
    asked_at: float = float("-inf")


@dataclass(eq=False)
class _Turn:
    who: Hashable
    came_at: float
    given: "asyncio.Future[None]"


class Turns:
    """Args: `places`: how many requests the engine serves at once; asked whenever it matters, at least 1."""

    def __init__(self, places: Callable[[], int], clock: Callable[[], float]) -> None:
        self._places = places
        self._clock = clock
        self._callers: OrderedDict[Hashable, _Caller] = OrderedDict()
        self._running = 0
        self._waiting: Waiting[_Turn] = Waiting()
        self._mean_s = GUESS_S
        #: Set while something waits although a place is free.
        self._look_again: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._running

    @contextlib.asynccontextmanager
    async def of(
        self, who: Hashable, within_s: float = 0.0, priority: int = 0, cost: float = 1.0
    ) -> AsyncIterator[float]:
        """Wait for a turn and hold it; yields how long that took, seconds. Raises `KithError`: `busy` where too many
        wait already, `too-late` where no turn came within `within_s` (0: wait for ever).

        Args:
            cost: what callers are compared by, in any unit that is the same for all; above 0.
        """
        asked = self._clock()
        await self._get(who, within_s, priority, cost)
        began = self._clock()
        try:
            yield began - asked
        finally:
            self._mean_s += NEWEST * (self._clock() - began - self._mean_s)
            self._give_back(who)

    async def _get(self, who: Hashable, within_s: float, priority: int, cost: float) -> None:
        self._forget_idle()
        caller = self._callers.setdefault(who, _Caller())
        caller.asked_at = self._clock()
        if caller.waiting >= WAITING_OF_ONE_MAX or len(self._waiting) >= WAITING_MAX:
            raise self._busy(caller.waiting)
        turn = _Turn(who, caller.asked_at, asyncio.get_running_loop().create_future())
        self._waiting.add(Entry(turn, priority, who, cost, math.inf))
        caller.waiting += 1
        self._next()
        try:
            async with asyncio.timeout(within_s or None):
                await turn.given
        except (asyncio.CancelledError, TimeoutError) as error:
            if turn.given.done() and not turn.given.cancelled():  # it came in the same moment
                self._give_back(who)
            else:
                self._next()
            if isinstance(error, TimeoutError):
                raise too_late(within_s, "no turn came") from None
            raise

    def _give_back(self, who: Hashable) -> None:
        self._callers[who].running -= 1
        self._running -= 1
        self._next()

    def _next(self) -> None:
        """Give away the places that are free."""
        self._drop_cancelled()  # who left in this very moment, and has not run since
        now = self._clock()
        self._waiting.raise_to(PRIORITY_MAX, lambda turn: turn.came_at <= now - AGED_S)
        places = max(1, self._places())
        while self._running < places and (turn := self._take(places - self._running, now)) is not None:
            caller = self._callers[turn.who]
            caller.waiting -= 1
            caller.running += 1
            self._running += 1
            turn.given.set_result(None)
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        if self._waiting and self._running < places:  # what is free is kept for others
            until = min(self._kept(now)) + LATELY_S
            self._look_again = asyncio.get_running_loop().call_later(until - now, self._next)

    def _drop_cancelled(self) -> None:
        for turn in self._waiting.drop(lambda turn: turn.given.cancelled()):
            self._callers[turn.who].waiting -= 1

    def _kept(self, now: float) -> list[float]:
        """When those asked for whom a place is kept."""
        callers = self._callers.values()
        return [caller.asked_at for caller in callers if caller.running == 0 and caller.asked_at + LATELY_S > now]

    def _take(self, free: int, now: float) -> _Turn | None:
        """Who gets one of the places that are free; None: nobody, or what is free is kept for others."""
        kept = len(self._kept(now))

        def holds(who: Hashable) -> int | None:
            running = self._callers[who].running
            return running if running == 0 or free > kept else None

        return self._waiting.take(holds)

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
        ahead = max(own, len(self._waiting))
        after_s = min(60.0, max(0.5, self._mean_s * ahead / max(1, self._places())))
        return KithError(
            "busy",
            f"{ahead} requests already wait for this engine",
            f"Ask again in {after_s:.0f} s, or another node.",
            ExitCode.UNAVAILABLE,
            after_s,
        )
