"""What members say of members: the fullest roster, in the longest words, still fits in one message."""

import random

import pytest

from mesh import effects, events
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.roster import MEMBERS_MAX
from mesh.wire import membership_pb2, mesh_pb2
from node.limits import MESSAGE_BYTES_MAX
from node.trimming import (
    ADDRESSES_MAX,
    HELLO_ADDRESSES_MAX,
    HOST_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    trim,
    trim_hello,
)
from tests.node.working import KEY


def record(number: int, life: int = 2**40) -> membership_pb2.MemberRecord:
    """In the longest words."""
    made = membership_pb2.MemberRecord(
        node_id=f"{number:032x}",
        incarnation=2**64 - 1,
        life=life,
        state=membership_pb2.MEMBER_STATE_ALIVE,
        name="\N{GRINNING FACE}" * 10_000,
        said_by="f" * 1000,
    )
    for port in range(1000):
        made.addresses.add(host="x" * HOST_CHARACTERS_MAX, port=60_000 + port)
        made.addresses.add(host="x" * 1000, port=1)
    return made


def news(*records: membership_pb2.MemberRecord) -> mesh_pb2.LinkMessage:
    return mesh_pb2.LinkMessage(member_news=membership_pb2.MemberNews(members=records))


def test_the_fullest_roster_fits_in_one_message() -> None:
    message = news(record(1))
    trim(message)
    [cut] = message.member_news.members
    assert (cut.node_id, cut.life, cut.said_by) == (f"{1:032x}", 2**40, "")
    assert cut.name == "\N{GRINNING FACE}" * NAME_CHARACTERS_MAX
    assert [address.port for address in cut.addresses] == [60_000 + number for number in range(ADDRESSES_MAX)]
    cut.said_by = "f" * 32
    assert news(*[cut] * MEMBERS_MAX).ByteSize() < MESSAGE_BYTES_MAX


@pytest.mark.parametrize("kind", ["probe", "probe_reply", "member_news"])
def test_every_message_that_brings_records_is_cut_and_what_it_does_not_know_goes(kind: str) -> None:
    unknown = membership_pb2.MemberRecord.FromString(record(1).SerializeToString() + b"\xfa\x7f\x03xyz" + b"")
    message = mesh_pb2.LinkMessage()
    getattr(message, kind).members.extend([unknown, unknown])
    trim(message)
    cut = getattr(message, kind).members
    assert [one.ByteSize() < 2048 and b"xyz" not in one.SerializeToString() for one in cut] == [True, True]


def test_what_an_honest_node_says_stays_as_it_is() -> None:
    one = membership_pb2.MemberRecord(node_id="a" * 32, life=7, state=membership_pb2.MEMBER_STATE_ALIVE, name="n" * 64)
    for number in range(ADDRESSES_MAX):
        one.addresses.add(host=f"fe80::aaaa:bbbb:cccc:{number}%enp0s31f6", port=7600)
    one.said_by = "b" * 32
    message = news(one)
    before = message.SerializeToString()
    trim(message)
    assert message.SerializeToString() == before


def test_a_hello_is_cut_to_what_may_be_told_on() -> None:
    hello = membership_pb2.Hello(node_id="a" * 32, name="x" * 1_000_000, life=3)
    for port in range(5000):
        hello.addresses.add(host="10.0.0.1", port=port)
    trim_hello(hello)
    assert (hello.name, len(hello.addresses), hello.life) == ("x" * NAME_CHARACTERS_MAX, HELLO_ADDRESSES_MAX, 3)


def test_what_a_node_tells_of_one_with_a_huge_name_can_be_sent() -> None:
    """The whole way: what came in is what goes out to the next that links."""
    replica = Replica(KEY, 1, 1, random.Random(1))
    teller = NodeId("a" * 32)
    message = news(*(record(number, life=1) for number in range(1, 40)))
    trim(message)
    hello = membership_pb2.Hello(node_id=teller, life=1, incarnation=1)
    replica.handle(events.LinkOpened(hello, ""), 1.0)
    replica.handle(events.Received(teller, message), 1.0)
    hello.node_id = "b" * 32
    done = replica.handle(events.LinkOpened(hello, ""), 2.0)
    told = [effect.message for effect in done if isinstance(effect, effects.Send) and effect.peer == hello.node_id]
    assert max(len(one.member_news.members) for one in told) > 39
    assert max(one.ByteSize() for one in told) < 40 * 2048
