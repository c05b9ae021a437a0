"""Which addresses to dial, and when: mDNS finds, seeds, remembered peers and addresses that members passed on.

Idea: an address is a hint until a node answered there. Each has its own backoff, so that a wrong or dead one costs a
dial a minute and delays no other. An address whose node is linked already, or which is our own, is not dialled.

Does not: open links or know who is alive.
"""

from dataclasses import dataclass, field

from mesh.effects import Dial, Effect
from mesh.gossip import Rng
from mesh.identity import NodeId

#: First wait after a failed dial; doubles up to the last.
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
#: Seeds are what the owner asked for: never further apart than this.
BACKOFF_SEED_S = 5.0
#: A dial that neither failed nor succeeded by then is tried again.
DIAL_TIMEOUT_S = 5.0
#: Against a LAN peer that advertises without end; the least useful address makes room.
ADDRESSES_MAX = 256
#: Addresses where nobody ever answered are dropped after so many failures in a row, unless they are seeds. Those of
#: nodes once met stay: a network may be cut for days.
FAILURES_MAX = 20


@dataclass
class Address:
    host: str
    port: int
    found_by: str  # "seed", "mdns", "cache", "peer"
    node_id: NodeId | None = None  # who answered there last, or is said to live there
    failures: int = 0
    next_dial_at: float = 0.0


@dataclass
class AddressBook:
    """Invariant: at most one entry a (host, port); at most `ADDRESSES_MAX` entries."""

    me: NodeId
    rng: Rng
    entries: dict[tuple[str, int], Address] = field(default_factory=dict)
    own: set[tuple[str, int]] = field(default_factory=set)

    def add(self, host: str, port: int, found_by: str, now: float, node_id: NodeId | None = None) -> None:
        key = (host, port)
        if key in self.own or node_id == self.me or not 0 < port < 65536:
            return
        entry = self.entries.get(key)
        if entry is None:
            if len(self.entries) >= ADDRESSES_MAX and not self._make_room():
                return
            entry = self.entries[key] = Address(host, port, found_by, node_id, next_dial_at=now)
        if found_by == "seed":
            entry.found_by = "seed"
        if node_id is not None:
            entry.node_id = node_id
        if found_by == "mdns":
            # A fresh advert says that somebody started there: no reason to wait.
            entry.next_dial_at = min(entry.next_dial_at, now)
            entry.failures = 0

    def tick(self, now: float, linked: frozenset[NodeId]) -> list[Effect]:
        effects: list[Effect] = []
        dialled: set[NodeId] = set()
        for entry in list(self.entries.values()):
            if now < entry.next_dial_at or (entry.node_id is not None and entry.node_id in linked | dialled):
                continue
            if entry.node_id is not None:
                dialled.add(entry.node_id)
            entry.next_dial_at = now + DIAL_TIMEOUT_S
            effects.append(Dial(entry.host, entry.port, entry.node_id))
        return effects

    def dial_succeeded(self, host: str, port: int, node_id: NodeId) -> None:
        if node_id == self.me:
            self.own.add((host, port))
            self.entries.pop((host, port), None)
        elif entry := self.entries.get((host, port)):
            entry.node_id = node_id
            entry.failures = 0

    def dial_failed(self, host: str, port: int, now: float) -> None:
        entry = self.entries.get((host, port))
        if entry is None:
            return
        entry.failures += 1
        if entry.failures > FAILURES_MAX and entry.found_by != "seed" and entry.node_id is None:
            del self.entries[(host, port)]
            return
        longest = BACKOFF_SEED_S if entry.found_by == "seed" else BACKOFF_LAST_S
        wait = min(longest, BACKOFF_FIRST_S * 2 ** min(entry.failures - 1, 10))
        entry.next_dial_at = now + wait * self.rng.uniform(0.8, 1.2)

    def link_closed(self, node_id: NodeId, now: float) -> None:
        """A lost node is dialled again soon, where it was."""
        for entry in self.entries.values():
            if entry.node_id == node_id:
                entry.failures = 0
                entry.next_dial_at = now + self.rng.uniform(0.2, 0.6)

    def found_by(self, node_id: NodeId) -> str:
        """How the node was found: for people."""
        for entry in self.entries.values():
            if entry.node_id == node_id:
                return entry.found_by
        return "inbound"

    def _make_room(self) -> bool:
        candidates = [entry for entry in self.entries.values() if entry.found_by != "seed" and entry.failures > 0]
        if not candidates:
            return False
        worst = max(candidates, key=lambda entry: (entry.failures, entry.host, entry.port))
        del self.entries[(worst.host, worst.port)]
        return True
