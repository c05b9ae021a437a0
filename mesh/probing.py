"""Probes under way: whom this node asked for a sign of life, and whom it asks on behalf of others.

Idea: members are probed one an interval in an order shuffled anew every round, so each is probed within two rounds by
everyone. A probe without an answer by its timeout is tried through a few others; a helper that gets no answer either
says so ("nack") before the asker's time is over, which tells the asker that its own ears work.

Source: SWIM (see rumours.py), sections 3.1 and 4.3; Lifeguard (see awareness.py), section IV.B.

Does not: judge. What an answer or its absence means is membership.py's to say.
"""

from dataclasses import dataclass, field

from mesh.gossip import Rng
from mesh.identity import NodeId

#: Of its timeout, when a helper gives up: early enough that the nack is there in time.
NACK_AT = 0.8
#: Probes for others under way at once: against a peer that makes us probe the whole LAN.
RELAYS_MAX = 256
#: Own probes under way at once, the regular one and those out of turn.
RUNS_MAX = 1024


@dataclass
class Run:
    """One probe of a member. Invariant: timeout_at <= ends_at."""

    probe_id: int
    target: NodeId
    sent_at: float
    timeout_at: float
    ends_at: float
    #: The interval's own probe, which also measures this node's health; else one out of turn.
    regular: bool
    helpers: list[NodeId] = field(default_factory=list)
    indirect: bool = False
    nacked: set[NodeId] = field(default_factory=set)


@dataclass
class Relay:
    """A probe on behalf of `origin`."""

    origin: NodeId
    origin_probe_id: int
    target: NodeId
    nack_at: float


class Probing:
    """Invariant: at most one run a target."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.runs: dict[int, Run] = {}
        self.relays: dict[int, Relay] = {}
        self._of_target: dict[NodeId, Run] = {}
        self._last_id = 0
        self._round: list[NodeId] = []

    def probes(self, target: NodeId) -> bool:
        """Whether a probe of `target` is under way."""
        return target in self._of_target

    def new_round(self, members: list[NodeId]) -> None:
        """Put the members into a new order."""
        self._round = self.rng.sample(members, len(members))

    def next_target(self) -> NodeId | None:
        """The next in this round; None where it is over."""
        return self._round.pop() if self._round else None

    def start(self, target: NodeId, now: float, *, timeout_s: float, interval_s: float, regular: bool) -> Run | None:
        """None where one is under way already."""
        if target in self._of_target or len(self.runs) >= RUNS_MAX:
            return None
        run = Run(self._next_id(), target, now, now + min(timeout_s, interval_s), now + interval_s, regular)
        self.runs[run.probe_id] = run
        self._of_target[target] = run
        return run

    def due(self, now: float) -> list[Run]:
        """Runs whose timeout or end has come."""
        if not self.runs:
            return []
        return [run for run in self.runs.values() if now >= (run.ends_at if run.indirect else run.timeout_at)]

    def end(self, run: Run) -> None:
        self.runs.pop(run.probe_id, None)
        self._of_target.pop(run.target, None)

    def relay(self, origin: NodeId, origin_probe_id: int, target: NodeId, now: float, timeout_s: float) -> int | None:
        """The id under which to probe `target` for `origin`; None where too many ask."""
        if len(self.relays) >= RELAYS_MAX:
            return None
        probe_id = self._next_id()
        self.relays[probe_id] = Relay(origin, origin_probe_id, target, now + NACK_AT * timeout_s)
        return probe_id

    def nacks_due(self, now: float) -> list[Relay]:
        """Relays whose time is over; they are forgotten."""
        if not self.relays:
            return []
        due = [probe_id for probe_id, relay in self.relays.items() if now >= relay.nack_at]
        return [self.relays.pop(probe_id) for probe_id in due]

    def forgive(self, gap_s: float) -> None:
        """This node itself stood still: nobody was late meanwhile."""
        for run in self.runs.values():
            run.sent_at += gap_s
            run.timeout_at += gap_s
            run.ends_at += gap_s
        for relay in self.relays.values():
            relay.nack_at += gap_s

    def validate(self) -> None:
        assert len(self.runs) == len(self._of_target)
        assert all(run.timeout_at <= run.ends_at for run in self.runs.values())

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id
