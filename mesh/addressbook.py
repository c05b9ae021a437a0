"""Which addresses to dial, and when: mDNS finds, seeds, remembered peers and addresses that members passed on.

Idea: an address is a hint until a node answered there. Each has its own backoff, so that a wrong or dead one costs a
dial now and then and delays no other. An address whose node is reached already, or which is our own, is not dialled. A
node whose link broke, or seems stuck, is dialled at once where it was; one that left is not, until something new is
heard of it.

Who is denied has no address here: its own are forgotten, and where it answers all the same, the next dial waits long.

Does not: open links or know who is alive.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.denials import Denials
from mesh.effects import Dial, Effect
from mesh.gossip import Rng
from mesh.identity import NodeId
from mesh.rate import Rate

#: First wait after a failed dial; doubles up to the last.
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
#: Seeds are what the owner asked for, and a node that was linked is missed: never further apart than this.
BACKOFF_SEED_S = 5.0
#: A node that was linked is missed for so long; after that its addresses are like any other.
MISSED_FOR_S = 600.0
#: A dial that neither failed nor succeeded by then is tried again.
DIAL_TIMEOUT_S = 5.0
#: A broken link is dialled anew after this, drawn between the two, so that both ends seldom do it at once.
REDIAL_MIN_S = 0.05
REDIAL_MAX_S = 0.2
#: Two members that hear of each other through a third: the one with the higher id leaves the first dial to the other.
YIELD_S = 1.0
#: A node that dialled in from a host where it does not say to listen is dialled where it says, to see whether others
#: could; given up after so many failures.
PROVING_DIALS = 3
#: Dials under way at once: a mesh that was cut in two dials half of itself.
DIALS_MAX = 32
#: Dials a second to where nobody was ever seen to answer, and how many at once after a pause: against adverts, and
#: members, that would make this node knock on every door of a network.
STRANGERS_PER_S, STRANGERS_BURST = 10.0, 256.0
#: Against a LAN peer that advertises without end; the least useful address makes room.
ADDRESSES_MAX = 2048
#: Addresses where nobody ever answered are dropped after so many failures in a row, unless they are seeds. Those of
#: nodes once met stay: a network may be cut for days.
FAILURES_MAX = 20
NEVER = float("inf")

Key = tuple[str, int]


@dataclass
class Address:
    host: str
    port: int
    found_by: str  # "seed", "mdns", "cache", "peer", "inbound"
    node_id: NodeId | None = None  # who answered there last, or is said to live there
    answered: bool = False  # `node_id` really answered there
    failures: int = 0
    next_dial_at: float = 0.0
    dialled_at: float | None = None  # of a dial under way
    missed_until: float = 0.0  # its node was linked


@dataclass
class AddressBook:
    """Invariant: at most one entry a (host, port); at most `ADDRESSES_MAX` entries; no entry is due before `due_at`."""

    me: NodeId
    rng: Rng
    entries: dict[Key, Address] = field(default_factory=dict)
    own: set[Key] = field(default_factory=set)
    due_at: float = 0.0
    strangers: Rate = field(default_factory=lambda: Rate(STRANGERS_PER_S, STRANGERS_BURST))
    denials: Denials = field(default_factory=Denials)
    of_node: dict[NodeId, dict[Key, None]] = field(default_factory=dict)

    def add(self, host: str, port: int, found_by: str, now: float, node_id: NodeId | None = None) -> None:
        key = (host, port)
        if key in self.own or node_id == self.me or not host or not 0 < port < 65536:
            return
        if node_id is not None and self.denials.is_denied(node_id):
            return
        entry = self.entries.get(key)
        if entry is None:
            if len(self.entries) >= ADDRESSES_MAX and not self._make_room():
                return
            entry = self.entries[key] = Address(host, port, found_by)
            yields = found_by == "peer" and node_id is not None and self.me > node_id
            self._schedule(entry, now + (self.rng.uniform(YIELD_S / 2, YIELD_S) if yields else 0.0))
        if found_by == "seed":
            entry.found_by = "seed"
        if node_id is not None and not entry.answered:
            self._belongs(entry, node_id)  # hearsay does not overrule who answered
        if found_by == "mdns":
            # A fresh advert says that somebody started there: no reason to wait.
            entry.failures = 0
            self._schedule(entry, min(entry.next_dial_at, now))

    def tick(self, now: float, reached: frozenset[NodeId]) -> list[Effect]:
        """Dials of what is due. `reached`: linked nodes whose link is good."""
        if now < self.due_at:
            return []
        effects: list[Effect] = []
        dialled: set[NodeId] = set()
        room = DIALS_MAX - sum(1 for entry in self.entries.values() if entry.dialled_at is not None)
        self.due_at = NEVER
        for entry in self.entries.values():
            if now >= entry.next_dial_at:
                if entry.node_id is not None and entry.node_id in reached and self._is_settled(entry):
                    entry.next_dial_at = NEVER if entry.found_by != "seed" else now + BACKOFF_SEED_S
                elif (
                    room > 0 and (entry.node_id is None or entry.node_id not in dialled) and self._may_dial(entry, now)
                ):
                    room -= 1
                    if entry.node_id is not None:
                        dialled.add(entry.node_id)
                    entry.dialled_at = now
                    entry.next_dial_at = now + DIAL_TIMEOUT_S
                    effects.append(Dial(entry.host, entry.port, entry.node_id))
            self.due_at = min(self.due_at, entry.next_dial_at)
        return effects

    def answered(self, node_id: NodeId) -> list[Key]:
        """Addresses where this node itself saw `node_id` answer."""
        return [key for key in self.of_node.get(node_id, ()) if self.entries[key].answered]

    def dial_succeeded(self, host: str, port: int, node_id: NodeId, now: float = 0.0) -> None:
        if node_id == self.me:
            self.own.add((host, port))
            self._drop((host, port))
        elif self.denials.is_denied(node_id):
            self._not_again_soon((host, port), now)
        elif entry := self.entries.get((host, port)):
            self._belongs(entry, node_id)
            entry.answered = True
            entry.failures = 0
            entry.dialled_at = None

    def dial_failed(self, host: str, port: int, now: float) -> NodeId | None:
        """Returns the node that answered there before, if one did."""
        entry = self.entries.get((host, port))
        if entry is None:
            return None
        entry.failures += 1
        entry.dialled_at = None
        if entry.failures > FAILURES_MAX and entry.found_by != "seed" and not entry.answered:
            self._drop((host, port))
            return None
        longest = BACKOFF_SEED_S if entry.found_by == "seed" or now < entry.missed_until else BACKOFF_LAST_S
        wait = min(longest, BACKOFF_FIRST_S * 2 ** min(entry.failures - 1, 10))
        self._schedule(entry, now + wait * self.rng.uniform(0.8, 1.2))
        return entry.node_id if entry.answered else None

    def link_opened(self, node_id: NodeId, addresses: Iterable[Key], host: str, now: float) -> None:
        """A node said Hello, and where it listens; `host` is where it dialled in from, empty where we dialled.

        The newest Hello holds: what it does not name any more is forgotten, but for seeds.
        """
        named = list(dict.fromkeys(addresses))
        for key in list(self.of_node.get(node_id, ())):
            if key not in named and self.entries[key].found_by != "seed":
                self._drop(key)
        for key in named:
            self.add(*key, "inbound" if host else "peer", now, node_id)
            if (entry := self.entries.get(key)) and entry.node_id == node_id:
                entry.failures = 0
                # Listening on all its addresses and speaking from this one, it answers there.
                entry.answered = entry.answered or (bool(host) and host == key[0])

    def link_closed(self, node_id: NodeId, now: float) -> None:
        """A lost node is dialled again soon, where it was."""
        for key in self.of_node.get(node_id, ()):
            entry = self.entries[key]
            entry.missed_until = now + MISSED_FOR_S
            entry.failures = 0
            self._schedule(entry, now + self.rng.uniform(REDIAL_MIN_S, REDIAL_MAX_S))

    def link_stuck(self, node_id: NodeId, now: float) -> None:
        """Its link is there and carries nothing: a dial beside it is due."""
        for key in self.of_node.get(node_id, ()):
            entry = self.entries[key]
            if entry.next_dial_at > now + DIAL_TIMEOUT_S:
                self._schedule(entry, now + self.rng.uniform(REDIAL_MIN_S, REDIAL_MAX_S))

    def returned(self, node_id: NodeId, now: float) -> None:
        """A node that was gone speaks to others."""
        for key in self.of_node.get(node_id, ()):
            entry = self.entries[key]
            entry.failures = 0
            self._schedule(entry, min(entry.next_dial_at, now + self.rng.uniform(REDIAL_MIN_S, YIELD_S)))

    def left(self, node_id: NodeId) -> None:
        """It said goodbye: it is not missed, and comes by itself. Seeds are dialled all the same."""
        for key in self.of_node.get(node_id, ()):
            if self.entries[key].found_by != "seed":
                self.entries[key].next_dial_at = NEVER

    def denied(self, node_id: NodeId, now: float) -> None:
        """A node was cut off: nobody dials it. Another may come to live where a seed is."""
        for key in list(self.of_node.get(node_id, ())):
            if self.entries[key].found_by == "seed":
                self._disown(key, node_id)
                self.entries[key].node_id, self.entries[key].answered = None, False
                self._not_again_soon(key, now)
            else:
                self._drop(key)

    def found_by(self, node_id: NodeId) -> str:
        """How the node was found: for people."""
        entries = [self.entries[key] for key in self.of_node.get(node_id, ())]
        return min(entries, key=lambda entry: not entry.answered).found_by if entries else "inbound"

    def validate(self) -> None:
        assert len(self.entries) <= ADDRESSES_MAX
        for key, entry in self.entries.items():
            assert (entry.host, entry.port) == key
            assert self.due_at <= entry.next_dial_at
            assert entry.node_id is None or key in self.of_node[entry.node_id]
        assert all(self.entries[key].node_id == node for node, keys in self.of_node.items() for key in keys)

    # Inside

    def _is_settled(self, entry: Address) -> bool:
        """Whether it is known if its linked node can be dialled at all: only then others can be told where it is."""
        assert entry.node_id is not None
        return entry.failures >= PROVING_DIALS or bool(self.answered(entry.node_id))

    def _may_dial(self, entry: Address, now: float) -> bool:
        return entry.answered or entry.found_by == "seed" or not self.strangers.wait_s("", now)

    def _not_again_soon(self, key: Key, now: float) -> None:
        if entry := self.entries.get(key):
            entry.dialled_at = None
            entry.failures = max(entry.failures, 1)  # the first to make room
            self._schedule(entry, now + BACKOFF_LAST_S)

    def _schedule(self, entry: Address, at: float) -> None:
        entry.next_dial_at = at
        self.due_at = min(self.due_at, at)

    def _belongs(self, entry: Address, node_id: NodeId) -> None:
        key = (entry.host, entry.port)
        if entry.node_id is not None and entry.node_id != node_id:
            self._disown(key, entry.node_id)
            entry.answered = False
        entry.node_id = node_id
        self.of_node.setdefault(node_id, {})[key] = None

    def _disown(self, key: Key, node_id: NodeId) -> None:
        keys = self.of_node[node_id]
        del keys[key]
        if not keys:
            del self.of_node[node_id]

    def _drop(self, key: Key) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None and entry.node_id is not None:
            self._disown(key, entry.node_id)

    def _make_room(self) -> bool:
        candidates = [entry for entry in self.entries.values() if entry.found_by != "seed" and entry.failures > 0]
        if not candidates:
            return False
        worst = max(candidates, key=lambda entry: (entry.failures, entry.host, entry.port))
        self._drop((worst.host, worst.port))
        return True
