"""What waits for a slow peer: in order, bounded both ways, and to its end."""

import asyncio

from mesh.wire import facts_pb2, mesh_pb2
from node.limits import MESSAGE_BYTES_MAX
from node.outbox import BYTES_MAX, QUEUE_MAX, Outbox


def message(size: int) -> mesh_pb2.LinkMessage:
    fact = facts_pb2.SignedFact(body=bytes(size))
    return mesh_pb2.LinkMessage(fact_push=facts_pb2.FactPush(facts=[fact]))


async def taken(outbox: Outbox) -> mesh_pb2.LinkMessage | None:
    async with asyncio.timeout(60):
        return await outbox.take()


async def test_large_messages_are_bounded_by_their_bytes_and_make_room_when_taken() -> None:
    outbox, large = Outbox(), message(1 << 20)
    fit = sum(outbox.put(large) for _ in range(100))
    assert fit == BYTES_MAX // large.ByteSize()
    assert outbox.put(message(1)), "what is small still fits: heartbeats"
    for _ in range(fit):
        assert await taken(outbox) == large
    assert await taken(outbox) == message(1)
    assert sum(outbox.put(large) for _ in range(100)) == fit


async def test_small_ones_are_bounded_by_their_number() -> None:
    outbox = Outbox()
    assert sum(outbox.put(message(1)) for _ in range(QUEUE_MAX + 10)) == QUEUE_MAX


async def test_who_waits_hears_of_the_next_and_of_the_end_after_all_that_waits() -> None:
    outbox = Outbox()
    waiting = asyncio.ensure_future(taken(outbox))
    await asyncio.sleep(0)
    assert outbox.put(message(1))
    assert await waiting == message(1)
    assert outbox.put(message(2))
    outbox.end()
    assert not outbox.put(message(3))
    assert await taken(outbox) == message(2)
    assert await taken(outbox) is None
    assert await taken(outbox) is None


async def test_what_no_message_may_hold_is_dropped_and_does_not_end_the_link() -> None:
    outbox = Outbox()
    assert not outbox.put(message(MESSAGE_BYTES_MAX))
    assert outbox.put(message(MESSAGE_BYTES_MAX - 100))
