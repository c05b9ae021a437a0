"""What members say that is told on to all others, cut to what they can be told of it.

Idea: a record of a member goes from node to node, and two that compare tell each other all records in one message. So
what one record may hold is bounded where it comes in: a node's roster (mesh/roster.py: `MEMBERS_MAX`) then fits in a
message (limits.py: `MESSAGE_BYTES_MAX`). A name or a list of addresses that is longer is cut, and not refused: of an
honest node it is an odd setting. So it is with what a worker says of a task, which the leader tells on; no honest one
says much, so what is larger is not heard.

Threat: a member with a name of megabytes. Whoever heard of it can not tell anybody any more who is in the mesh, because
gRPC sends no message that large and ends the link.

Does not: judge what a record says.
"""

from typing import TYPE_CHECKING

from mesh.wire import common_pb2, membership_pb2, mesh_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

#: Characters of a node's name, as its setting has it.
NAME_CHARACTERS_MAX = 64
#: Addresses of one member that are told on, and characters of one: an IPv6 address has 45, and may name an interface.
ADDRESSES_MAX, HOST_CHARACTERS_MAX = 12, 64
#: Addresses that one node says of itself: it is dialled there.
HELLO_ADDRESSES_MAX = 64
#: Characters of a node's id.
ID_CHARACTERS = 32
#: What a worker says of one task, bytes: some hashes and numbers, or a sentence that says why not.
TASK_EVENT_BYTES_MAX = 16 << 10
#: What is not larger needs no look, bytes.
SMALL = 512
#: Kinds of messages that bring records.
_WITH_RECORDS = frozenset({"probe", "probe_reply", "member_news"})


def trim(message: mesh_pb2.LinkMessage) -> bool:
    """Cut the records in a message from a peer, in place. False where it is not to be heard."""
    kind = message.WhichOneof("message")
    if kind == "task_event":
        return message.task_event.ByteSize() <= TASK_EVENT_BYTES_MAX
    if kind == "work_report":
        return all(event.ByteSize() <= TASK_EVENT_BYTES_MAX for event in message.work_report.running)
    if kind in _WITH_RECORDS and message.ByteSize() > SMALL:
        for record in getattr(message, kind).members:
            if record.ByteSize() > SMALL:
                _trim(record)
    return True


def trim_hello(hello: membership_pb2.Hello) -> None:
    """The same with what a node says of itself."""
    hello.name = hello.name[:NAME_CHARACTERS_MAX]
    _keep(hello.addresses, HELLO_ADDRESSES_MAX)


def _trim(record: membership_pb2.MemberRecord) -> None:
    record.name = record.name[:NAME_CHARACTERS_MAX]
    if len(record.said_by) > ID_CHARACTERS:
        record.said_by = ""
    _keep(record.addresses, ADDRESSES_MAX)
    record.DiscardUnknownFields()


def _keep(addresses: "RepeatedCompositeFieldContainer[common_pb2.NodeAddress]", most: int) -> None:
    kept = [address for address in addresses if len(address.host) <= HOST_CHARACTERS_MAX][:most]
    del addresses[:]
    addresses.extend(kept)
