"""Links as TCP gives them: ordered streams that stall or break, never lose one message out of the middle.

A lost segment delays all that follows on its stream until it is sent again, with doubling waits. A blocked direction
holds its messages until it is unblocked; a stream that stalls for too long breaks. What was under way on a broken link
is lost, and each side hears of the break at its own time, perhaps seconds later; until then it sends into nothing.

Beyond what TCP does, a message may come twice, the second time late and out of order: two links between two nodes carry
messages past each other, and no machine may depend on their order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mesh import effects, events
from tests.sim.clock import Clock

if TYPE_CHECKING:
    from tests.sim.host import Host

#: Messages under way in one direction of a link; the shell drops what is beyond.
OUTBOX_MAX = 256
DIAL_TIMEOUT_S = 3.0
LATENCY_MIN_S = 0.0002
#: First wait before a lost segment is sent again; each further one doubles.
RESEND_S = 0.2
#: A stream on which nothing came through for so long breaks, at the earliest and at the latest.
BREAK_MIN_S, BREAK_MAX_S = 4.0, 15.0


class End:
    """One side of a link, and the stream of messages that leaves it."""

    __slots__ = ("held", "host", "last_ready", "life", "link", "other", "under_way")

    def __init__(self, host: Host, link: Link) -> None:
        self.host = host
        self.life = host.life
        self.link = link
        self.other: End = self
        self.held: deque[bytes] | None = None  # arrived at a blocked direction
        self.last_ready = 0.0
        self.under_way = 0

    @property
    def dialled(self) -> bool:
        return self.link.ends[0] is self


class Link:
    __slots__ = ("alive", "ends")

    def __init__(self, dialler: Host, acceptor: Host) -> None:
        self.alive = True
        self.ends = (End(dialler, self), End(acceptor, self))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]


class Network:
    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.hosts: list[Host] = []
        self.addresses: dict[tuple[str, int], Host] = {}
        self.links: dict[Link, None] = {}  # alive ones, oldest first
        self._links_of: dict[Host, dict[Link, None]] = {}  # the same, of each host
        self.latency_max_s = rng.choice([0.002, 0.002, 0.01, 0.06])
        self.loss = 0.0  # of a segment, each way
        self.twice = 0.0  # of a message
        self.messages = 0
        self.bytes = 0
        self._blocks: dict[tuple[int, int], int] = {}

    # Faults

    def block(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Stop the directions (from, to); blocks add up."""
        for pair in pairs:
            self._blocks[pair] = self._blocks.get(pair, 0) + 1

    def unblock(self, pairs: Iterable[tuple[int, int]]) -> None:
        for pair in pairs:
            self._blocks[pair] -= 1
            if not self._blocks[pair]:
                del self._blocks[pair]
        for link in list(self.links):
            for end in link.ends:
                if end.held and not self.is_blocked(end.host, end.other.host):
                    # TCP tries again some time after the path is back.
                    self.clock.after(self.rng.uniform(0.0, 0.8), partial(self._let_go, end))

    def is_blocked(self, sender: Host, receiver: Host) -> bool:
        return (sender.index, receiver.index) in self._blocks

    def break_link(self, link: Link, notice_max_s: float) -> None:
        """End a link; each side hears of it within `notice_max_s`."""
        if not link.alive:
            return
        link.alive = False
        del self.links[link]
        for end in link.ends:
            del self._links_of[end.host][link]
            end.held = None
            self.clock.after(self.rng.uniform(0.0, notice_max_s), partial(end.host.link_lost, end))

    def link(self, dialler: Host, acceptor: Host) -> Link:
        """A new link, which neither shell knows of yet."""
        link = Link(dialler, acceptor)
        self.links[link] = None
        for end in link.ends:
            self._links_of.setdefault(end.host, {})[link] = None
        return link

    def links_of(self, host: Host) -> list[Link]:
        return list(self._links_of.get(host, ()))

    def host_died(self, host: Host, notice_max_s: float) -> None:
        for link in self.links_of(host):
            self.break_link(link, notice_max_s)

    def moved(self, host: Host, address: tuple[str, int]) -> None:
        """The host got another address: its links are dead, and nobody answers at the old one."""
        self.addresses.pop(host.address, None)
        host.address = address
        self.addresses[address] = host
        for link in self.links_of(host):
            self.break_link(link, self.rng.choice([0.5, 6.0]))

    # The shell's side

    def dial(self, dialler: Host, dial: effects.Dial) -> None:
        life = dialler.life
        target = self.addresses.get((dial.host, dial.port))
        stuck = dialler.linked(dial.expected)
        if target is dialler:
            event = events.DialSucceeded(dial.host, dial.port, dialler.key.node_id)
            self.clock.after(self.latency(), lambda: dialler.deliver(event, life))
        else:
            self.clock.after(self.latency(), lambda: self._arrive(dialler, life, dial, target, stuck))

    def send(self, end: End, data: bytes) -> None:
        if not end.link.alive or end.under_way >= OUTBOX_MAX:
            return
        self.messages += 1
        self.bytes += len(data)
        delay_s = self.latency()
        if self.loss:
            wait_s = RESEND_S
            while self.rng.random() < self.loss and delay_s < 30.0:
                delay_s += wait_s
                wait_s *= 2
        now = self.clock.now
        ready = now + delay_s
        if ready < end.last_ready:
            ready = end.last_ready
        end.last_ready = ready
        end.under_way += 1
        self.clock.after(ready - now, partial(self._reach, end, data))
        if self.twice and self.rng.random() < self.twice:
            self.clock.after(ready - now + self.rng.uniform(0.0, 2.0), partial(self._again, end, data))

    def latency(self) -> float:
        return LATENCY_MIN_S + (self.latency_max_s - LATENCY_MIN_S) * self.rng.random()

    # Inside

    def _arrive(self, dialler: Host, life: int, dial: effects.Dial, target: Host | None, stuck: Sequence[End]) -> None:
        """A dial reached its target's machine, or nothing."""
        if dialler.life != life or dialler.replica is None:
            return
        if target is None or self.is_blocked(dialler, target) or self.is_blocked(target, dialler) or target.paused:
            failed = events.DialFailed(dial.host, dial.port)
            self.clock.after(self.rng.uniform(0.5, DIAL_TIMEOUT_S), lambda: dialler.deliver(failed, life))
            return
        if target.replica is None:
            refused = events.DialFailed(dial.host, dial.port, refused=True)
            self.clock.after(self.latency(), lambda: dialler.deliver(refused, life))
            return
        link = self.link(dialler, target)
        back_s = self.latency()
        link.ends[1].last_ready = self.clock.now + back_s  # nothing overtakes the acceptor's Hello
        self.clock.after(back_s, lambda: self._answered(dialler, life, dial, link, stuck))
        target.link_up(link.ends[1], dialler.hello())

    def _answered(self, dialler: Host, life: int, dial: effects.Dial, link: Link, stuck: Sequence[End]) -> None:
        acceptor = link.ends[1].host
        alive = link.alive and acceptor.life == link.ends[1].life and acceptor.replica is not None
        if alive and dialler.life == life and not self.is_blocked(acceptor, dialler):
            dialler.deliver(events.DialSucceeded(dial.host, dial.port, acceptor.key.node_id), life)
            dialler.link_up(link.ends[0], acceptor.hello(), [end for end in stuck if end.other.host is acceptor])
        else:
            self.break_link(link, 1.0)
            dialler.deliver(events.DialFailed(dial.host, dial.port), life)

    def _reach(self, end: End, data: bytes) -> None:
        if not end.link.alive:
            return
        if end.held or (end.host.index, end.other.host.index) in self._blocks:
            if not end.held:
                end.held = deque()
                first = end.held
                self.clock.after(self.rng.uniform(BREAK_MIN_S, BREAK_MAX_S), lambda: self._give_up(end, first))
            end.held.append(data)
            return
        end.under_way -= 1
        end.other.host.receive(end.other, data)

    def _again(self, end: End, data: bytes) -> None:
        if end.link.alive and not end.held and not self.is_blocked(end.host, end.other.host):
            end.other.host.receive(end.other, data)

    def _let_go(self, end: End) -> None:
        if self.is_blocked(end.host, end.other.host):
            return
        held, end.held = end.held, None
        for data in held or ():
            if end.link.alive:
                end.under_way -= 1
                end.other.host.receive(end.other, data)

    def _give_up(self, end: End, held: deque[bytes]) -> None:
        if end.link.alive and end.held is held:
            self.break_link(end.link, 2.0)
