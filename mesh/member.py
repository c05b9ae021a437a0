"""One member as this node knows it, and what it may say of it to others.

Two states, on purpose. `belief` is the mesh's common knowledge, merged from everybody's records. `state` is what this
node acts on: a member that the mesh believes alive but that this node can not reach itself is suspect here.
"""

from dataclasses import dataclass, field

from mesh.identity import NodeId
from mesh.suspicion import Suspicion
from mesh.wire import membership_pb2

ALIVE = membership_pb2.MEMBER_STATE_ALIVE
SUSPECT = membership_pb2.MEMBER_STATE_SUSPECT
DEAD = membership_pb2.MEMBER_STATE_DEAD
LEFT = membership_pb2.MEMBER_STATE_LEFT

#: Probes in a row that the member itself did not answer, though others may have reached it: from then on it counts as
#: out of this node's reach. One may be a TCP stream that stalls for a second; two are three seconds.
MISSES_MAX = 2
#: Lives start at the wall clock in seconds. A record further ahead of what is known than this (136 years) is nonsense
#: and would leave no number to deny it with.
LIFE_JUMP_MAX = 1 << 32
#: Agents of one node whose load is kept: the most that a node has, and the bytes of a load with them. Of more, the sums
#: alone are kept. Threat: a member that tells of thousands, or of long names.
AGENTS_TOLD_MAX, LOAD_BYTES_MAX = 16, 4096


#: Of one that has not told yet what it is doing. Shared: not to be changed.
_NO_LOAD = membership_pb2.NodeLoad()


@dataclass(slots=True)
class Member:
    """Invariants: state is ALIVE only if belief is, and it is linked and answers; suspicion is there iff SUSPECT."""

    node_id: NodeId
    incarnation: int = 0
    life: int = 0
    name: str = ""
    addresses: tuple[tuple[str, int], ...] = ()  # as its newest Hello says; a hint
    proved: tuple[tuple[str, int], ...] = ()  # where it answered; only these are told to others
    belief: int = ALIVE
    state: int = SUSPECT
    state_since: float = 0.0
    absent_since: float | None = None  # dead or left since then
    linked: bool = False
    last_heard: float = float("-inf")  # any word on the link
    misses: int = 0  # probes in a row without an answer of its own
    link_broke_at: float | None = None  # a link that ended, and no word of the member itself since
    told_at: float = float("-inf")  # that it is suspected
    doubted_at: float = float("-inf")  # probed out of turn
    suspicion: Suspicion | None = None
    accused: membership_pb2.MemberRecord | None = None  # what others said of it, until it answers or does not
    load: membership_pb2.NodeLoad = field(default_factory=lambda: _NO_LOAD)
    _said: tuple[object, ...] = ()  # what `_record` says
    _record: membership_pb2.MemberRecord | None = None

    @property
    def departed(self) -> bool:
        return self.belief in (DEAD, LEFT)

    @property
    def answers(self) -> bool:
        """Linked, and answered one of the last probes itself."""
        return self.linked and self.misses < MISSES_MAX

    def outranks(self, life: int, state: int) -> bool:
        """Whether what is believed is at least as new as (life, state).

        Records of one node merge by the greater (life, state), states in the order ALIVE < SUSPECT < DEAD < LEFT. That
        is a total order, so any order and repetition of the same records ends the same (SWIM, section 4.2).
        """
        return (self.life, self.belief) >= (life, state)

    def load_told(self, load: membership_pb2.NodeLoad) -> None:
        told = membership_pb2.NodeLoad()  # anew each time: a message frees what it held before only when it goes itself
        told.CopyFrom(load)
        if len(told.agents) > AGENTS_TOLD_MAX or told.ByteSize() > LOAD_BYTES_MAX:
            told.ClearField("agents")
            told.DiscardUnknownFields()
        self.load = told

    def record(self, said_by: str = "") -> membership_pb2.MemberRecord:
        """What is believed of it, for others. Made once for all that are told the same: not to be changed."""
        said = (self.incarnation, self.life, self.belief, self.name, self.proved, said_by)
        if self._record is not None and self._said == said:
            return self._record
        record = membership_pb2.MemberRecord(
            node_id=self.node_id,
            incarnation=self.incarnation,
            life=self.life,
            state=membership_pb2.MemberState.ValueType(self.belief),
            name=self.name,
            said_by=said_by,
        )
        for host, port in self.proved:
            record.addresses.add(host=host, port=port)
        self._said, self._record = said, record
        return record


def readable(record: membership_pb2.MemberRecord) -> bool:
    """Whether a record says something: of a node, in a state that this release knows."""
    return len(record.node_id) == 32 and ALIVE <= record.state <= LEFT
