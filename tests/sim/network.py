"""Links as TCP gives them: ordered streams that stall or break, never lose one message out of the middle.

A blocked direction holds its messages until it is unblocked; a stream that stalls for too long breaks. What was
under way on a broken link is lost, and each side hears of the break at its own time, perhaps seconds later. Until then
it goes on sending into nothing.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

from mesh import effects, events
from tests.sim.clock import Clock

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Messages that one direction of a link holds; the shell drops what is beyond.
OUTBOX_MAX = 256
DIAL_TIMEOUT_S = 3.0


class End:
    """One side of a link, and the stream of messages that leaves it."""

    def __init__(self, host: Host, link: Link) -> None:
        self.host = host
        self.life = host.life
        self.link = link
        self.other: End = self
        self.outbox: deque[tuple[float, bytes]] = deque()
        self.last_ready = 0.0
        self.pump_at: float | None = None
        self.stalled = False

    @property
    def dialled(self) -> bool:
        return self.link.ends[0] is self


class Link:
    def __init__(self, dialler: Host, acceptor: Host) -> None:
        self.alive = True
        self.ends = (End(dialler, self), End(acceptor, self))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]


class Network:
    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.hosts: list[Host] = []
        self.links: dict[Link, None] = {}  # alive ones, oldest first
        self.latency_max_s = rng.choice([0.002, 0.002, 0.01, 0.06])
        self._blocks: dict[tuple[int, int], int] = {}

    # Faults

    def block(self, pairs: list[tuple[int, int]]) -> None:
        """Stop the directions (from, to); blocks add up."""
        for pair in pairs:
            self._blocks[pair] = self._blocks.get(pair, 0) + 1

    def unblock(self, pairs: list[tuple[int, int]]) -> None:
        for pair in pairs:
            self._blocks[pair] -= 1
        for link in list(self.links):
            for end in link.ends:
                if end.outbox and not self.is_blocked(end.host, end.other.host):
                    # TCP tries again some time after the path is back.
                    self._pump_later(end, self.rng.uniform(0.0, 0.8))

    def is_blocked(self, sender: Host, receiver: Host) -> bool:
        return self._blocks.get((sender.index, receiver.index), 0) > 0

    def break_link(self, link: Link, notice_max_s: float) -> None:
        """End a link; each side hears of it within `notice_max_s`."""
        if not link.alive:
            return
        link.alive = False
        del self.links[link]
        for end in link.ends:
            end.outbox.clear()
            self.clock.after(self.rng.uniform(0.0, notice_max_s), lambda end=end: end.host.link_lost(end))  # type: ignore[misc]

    def host_died(self, host: Host, notice_max_s: float) -> None:
        for link in list(self.links):
            if any(end.host is host for end in link.ends):
                self.break_link(link, notice_max_s)

    # The shell's side

    def dial(self, dialler: Host, dial: effects.Dial) -> None:
        life = dialler.life
        target = next((host for host in self.hosts if host.address == (dial.host, dial.port)), None)
        if target is dialler:
            event = events.DialSucceeded(dial.host, dial.port, dialler.key.node_id)
            self.clock.after(self._latency(), lambda: dialler.deliver(event, life))
        else:
            self.clock.after(self._latency(), lambda: self._arrive(dialler, life, dial, target))

    def send(self, end: End, data: bytes) -> None:
        if not end.link.alive or len(end.outbox) >= OUTBOX_MAX:
            return
        end.last_ready = max(end.last_ready, self.clock.now + self._latency())
        end.outbox.append((end.last_ready, data))
        self._pump_later(end, end.outbox[0][0] - self.clock.now)

    # Inside

    def _arrive(self, dialler: Host, life: int, dial: effects.Dial, target: Host | None) -> None:
        """A dial reached its target's machine, or nothing."""
        failed = events.DialFailed(dial.host, dial.port)
        if dialler.life != life or dialler.replica is None:
            return
        if target is None or self.is_blocked(dialler, target) or self.is_blocked(target, dialler) or target.paused:
            self.clock.after(self.rng.uniform(0.5, DIAL_TIMEOUT_S), lambda: dialler.deliver(failed, life))
            return
        if target.replica is None:
            self.clock.after(self._latency(), lambda: dialler.deliver(failed, life))
            return
        link = Link(dialler, target)
        self.links[link] = None
        back_s = self._latency()
        link.ends[1].last_ready = self.clock.now + back_s  # nothing overtakes the acceptor's Hello
        self.clock.after(back_s, lambda: self._answered(dialler, life, dial, link))
        target.link_up(link.ends[1], dialler.hello())

    def _answered(self, dialler: Host, life: int, dial: effects.Dial, link: Link) -> None:
        acceptor = link.ends[1].host
        if link.alive and dialler.life == life and not self.is_blocked(acceptor, dialler):
            dialler.deliver(events.DialSucceeded(dial.host, dial.port, acceptor.key.node_id), life)
            dialler.link_up(link.ends[0], acceptor.hello())
        else:
            self.break_link(link, 1.0)
            dialler.deliver(events.DialFailed(dial.host, dial.port), life)

    def _latency(self) -> float:
        return self.rng.uniform(0.0002, self.latency_max_s)

    def _pump_later(self, end: End, delay_s: float) -> None:
        due = self.clock.now + max(0.0, delay_s)
        if end.pump_at is None or due < end.pump_at:
            end.pump_at = due
            self.clock.after(due - self.clock.now, lambda: self._pump(end, due))

    def _pump(self, end: End, due: float) -> None:
        if end.pump_at != due:
            return
        end.pump_at = None
        while end.outbox and end.link.alive:
            if self.is_blocked(end.host, end.other.host):
                self._stall(end)
                return
            if end.outbox[0][0] > self.clock.now:
                self._pump_later(end, end.outbox[0][0] - self.clock.now)
                return
            end.stalled = False
            _, data = end.outbox.popleft()
            end.other.host.receive(end.other, data)

    def _stall(self, end: End) -> None:
        if end.stalled:
            return
        end.stalled = True
        first = end.outbox[0]

        def give_up() -> None:
            if end.outbox and end.outbox[0] is first:
                self.break_link(end.link, 2.0)

        self.clock.after(self.rng.uniform(4.0, 15.0), give_up)
