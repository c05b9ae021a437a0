"""Copies of blobs: whom this node asks to hold what, what it holds for others, and when it repairs."""

import pytest

from mesh import events
from mesh.copies import (
    AUDIT_S,
    BLOB_BYTES_MAX,
    CHECKS_PER_TICK,
    FETCH_QUEUE_OF_ONE_MAX,
    FETCHES_MAX,
    FETCHES_OF_ONE_MAX,
    OFFER_REFS_MAX,
    PATIENCE_S,
    PROMISED_S,
    PUSH_RETRY_S,
    SETTLE_S,
    Copies,
)
from mesh.effects import DropBlobs, Effect, FetchBlob, Send
from mesh.identity import NodeId
from mesh.rendezvous import holders as ranked
from mesh.wire import common_pb2, facts_pb2
from tests.mesh.building import E
from tests.mesh.lone import Lone, ref, to

DOC = ref("document")


@pytest.fixture
def node() -> Lone:
    return Lone(peers=4)


def copies(node: Lone) -> Copies:
    return node.replica.work.copies


def holds(node: Lone, peer: NodeId, *refs: common_pb2.BlobRef) -> list[Effect]:
    return node.receive(peer, blob_receipt=facts_pb2.BlobReceipt(sha256=[one.sha256 for one in refs]))


def refuses(node: Lone, peer: NodeId, one: common_pb2.BlobRef) -> list[Effect]:
    return node.receive(peer, blob_receipt=facts_pb2.BlobReceipt(refused=[one.sha256]))


def wanted(node: Lone, *refs: common_pb2.BlobRef) -> None:
    """These are held here, and wanted by a job."""
    for one in refs:
        node.do(events.BlobStored(one))
    copies(node).want(b"job", refs, node.now)


def offers(node: Lone, now: float) -> list[NodeId]:
    node.now = now
    return to(copies(node).tick(now), "blob_offer")


def test_a_push_asks_the_best_ranked_and_is_done_when_they_hold_it(node: Lone) -> None:
    first, second, third, _ = ranked(DOC.sha256, node.peers, 4)
    node.do(events.BlobStored(DOC))
    assert to(copies(node).push([DOC], 10.0, 0.0), "blob_offer") == sorted([first, second])
    assert not copies(node).enough([DOC])
    holds(node, first, DOC)
    assert not copies(node).enough([DOC])
    # The second did not answer: it is asked again, and the next as well.
    assert offers(node, PUSH_RETRY_S) == sorted([second, third])
    holds(node, third, DOC)
    assert copies(node).enough([DOC])
    assert copies(node).holders([DOC]) == {node.me, first, third}
    assert offers(node, 5.0) == []


def test_who_refuses_is_passed_over(node: Lone) -> None:
    first, second, third, fourth = ranked(DOC.sha256, node.peers, 4)
    node.do(events.BlobStored(DOC))
    copies(node).push([DOC], 10.0, 0.0)
    refuses(node, first, DOC)
    asked = offers(node, PUSH_RETRY_S)
    assert first not in asked
    assert {second, third} <= set(asked) <= {second, third, fourth}


def test_a_node_that_does_not_store_is_neither_asked_nor_stores(node: Lone) -> None:
    best = ranked(DOC.sha256, node.peers, 1)[0]
    node.profile(best, stores=False)
    node.do(events.BlobStored(DOC))
    asked = to(copies(node).push([DOC], 10.0, 0.0), "blob_offer")
    assert len(asked) == 2
    assert best not in asked
    node.profile(node.me, stores=False)
    [answer] = node.receive(E, blob_offer=facts_pb2.BlobOffer(blobs=[ref("other")]))
    assert isinstance(answer, Send)
    assert list(answer.message.blob_receipt.refused) == [ref("other").sha256]


def test_what_is_offered_is_fetched_and_acknowledged_once_durable(node: Lone) -> None:
    one, other = node.peers[:2]
    offer = facts_pb2.BlobOffer(blobs=[DOC])
    assert node.receive(one, blob_offer=offer) == [FetchBlob(one, DOC)]
    assert node.receive(other, blob_offer=offer) == [], "it is on its way already"
    # The first does not give it after all: the other is asked.
    assert node.do(events.BlobNotStored(DOC, one)) == [FetchBlob(other, DOC)]
    assert to(node.do(events.BlobStored(DOC, other)), "blob_receipt") == [other]
    # What is held is acknowledged at once, and the offerer is known to hold it.
    assert to(node.receive(one, blob_offer=offer), "blob_receipt") == [one]
    assert copies(node).holders([DOC]) == {node.me, one, other}


def test_what_finds_no_room_is_refused(node: Lone) -> None:
    huge = common_pb2.BlobRef(sha256=b"h" * 32, size_bytes=BLOB_BYTES_MAX + 1)
    [answer] = node.receive(E, blob_offer=facts_pb2.BlobOffer(blobs=[huge]))
    assert isinstance(answer, Send)
    assert list(answer.message.blob_receipt.refused) == [huge.sha256]
    node.receive(E, blob_offer=facts_pb2.BlobOffer(blobs=[DOC]))
    [answer] = node.do(events.BlobNotStored(DOC, E, refused=True))
    assert isinstance(answer, Send)
    assert list(answer.message.blob_receipt.refused) == [DOC.sha256]


def test_few_blobs_are_fetched_at_a_time(node: Lone) -> None:
    refs = [ref(str(number)) for number in range(FETCHES_MAX + 3)]
    offerers = node.peers[: -(-FETCHES_MAX // FETCHES_OF_ONE_MAX) + 1]
    fetches = [
        effect
        for number, one in enumerate(refs)
        for effect in node.receive(offerers[number % len(offerers)], blob_offer=facts_pb2.BlobOffer(blobs=[one]))
    ]
    assert fetches == [FetchBlob(offerers[number % len(offerers)], refs[number]) for number in range(FETCHES_MAX)]
    assert [effect for effect in node.do(events.BlobStored(refs[0], E)) if isinstance(effect, FetchBlob)]


def test_only_what_is_wanted_is_offered(node: Lone) -> None:
    node.do(events.BlobStored(DOC))
    assert offers(node, SETTLE_S) == []
    copies(node).want(b"job", [DOC], node.now)
    assert len(offers(node, 2 * SETTLE_S)) == 2
    copies(node).want(b"job", [], node.now)
    assert offers(node, 3600.0) == []


@pytest.mark.parametrize("name", ["one", "two", "three", "four"])
def test_an_absent_holder_is_waited_for_and_then_replaced(node: Lone, name: str) -> None:
    blob = ref(name)
    first, second, third, _ = ranked(blob.sha256, node.peers, 4)
    wanted(node, blob)
    holds(node, first, blob)
    holds(node, second, blob)
    assert offers(node, SETTLE_S) == []
    node.leaves(first)
    # Now this node and the second hold it; of the two one repairs.
    mine = ranked(blob.sha256, [node.me, second], 1) == [node.me]
    left_at = node.now
    assert all(offers(node, left_at + seconds) == [] for seconds in (1.0, 10.0, PATIENCE_S - 1.0))
    asked = offers(node, left_at + PATIENCE_S + AUDIT_S)
    assert asked == ([third] if mine else [])


def test_the_only_copy_is_not_kept_waiting(node: Lone) -> None:
    first, second, third, _ = ranked(DOC.sha256, node.peers, 4)
    wanted(node, DOC)
    holds(node, first, DOC)
    holds(node, second, DOC)
    offers(node, SETTLE_S)
    node.leaves(first)
    node.leaves(second)
    assert third in offers(node, node.now + SETTLE_S)


@pytest.mark.parametrize("name", [f"blob {number}" for number in range(6)])
def test_of_the_holders_that_are_here_the_highest_ranked_repairs(node: Lone, name: str) -> None:
    blob = ref(name)
    peer = node.peers[0]
    wanted(node, blob)
    holds(node, peer, blob)
    asked = offers(node, SETTLE_S)
    mine = ranked(blob.sha256, [node.me, peer], 1) == [node.me]
    assert len(asked) == (1 if mine else 0)
    assert peer not in asked


def test_a_receipt_of_an_earlier_life_counts_no_more(node: Lone) -> None:
    first, second, _, _ = ranked(DOC.sha256, node.peers, 4)
    wanted(node, DOC)
    holds(node, first, DOC)
    holds(node, second, DOC)
    assert copies(node).enough([DOC])
    node.leaves(first)
    node.link(first, life=2)
    assert copies(node).holders([DOC]) == {node.me, second}
    copies(node).push([DOC], 100.0, node.now)
    holds(node, first, DOC)
    assert copies(node).enough([DOC])


def test_what_the_disk_held_at_start_is_offered_in_bounded_messages() -> None:
    node = Lone(peers=2)
    refs = [ref(str(number)) for number in range(3 * CHECKS_PER_TICK)]
    wanted(node, *refs)
    sent = [effect for effect in copies(node).tick(SETTLE_S) if isinstance(effect, Send)]
    assert sum(len(effect.message.blob_offer.blobs) for effect in sent) <= 2 * CHECKS_PER_TICK
    assert all(len(effect.message.blob_offer.blobs) <= OFFER_REFS_MAX for effect in sent)
    for _ in range(4):
        sent += [effect for effect in copies(node).tick(SETTLE_S) if isinstance(effect, Send)]
    offered = {one.sha256 for effect in sent for one in effect.message.blob_offer.blobs}
    assert offered == {one.sha256 for one in refs}


def test_a_dropped_blob_is_not_held(node: Lone) -> None:
    wanted(node, DOC)
    copies(node).dropped([DOC.sha256])
    assert copies(node).holders([DOC]) == set()
    assert node.receive(E, blob_offer=facts_pb2.BlobOffer(blobs=[DOC])) == [FetchBlob(E, DOC)]
    assert offers(node, SETTLE_S) == []


def test_receipts_count_no_more_once_nobody_wants_the_blob(node: Lone) -> None:
    wanted(node, DOC)
    holds(node, node.peers[0], DOC)
    copies(node).want(b"other job", [DOC], 0.0)
    copies(node).want(b"job", [], 0.0)
    assert copies(node).holders([DOC]) == {node.me, node.peers[0]}
    copies(node).want(b"other job", [DOC], 0.0)
    assert copies(node).holders([DOC]) == {node.me, node.peers[0]}
    copies(node).want(b"other job", [], 0.0)
    assert copies(node).holders([DOC]) == {node.me}, "the peer may have dropped it when the job closed"
    holds(node, node.peers[0], DOC)  # late, and dropped then
    assert to(copies(node).push([DOC], 10.0, 0.0), "blob_offer"), "the same content again is offered again"
    assert copies(node).holders([DOC]) == {node.me}


def test_what_was_said_to_be_held_is_kept_until_it_is_announced(node: Lone) -> None:
    """Seed 971: retention dropped an old result a moment after another node was told of it, which then announced it."""
    asker, other = ref("asked for"), ref("not asked for")
    for one in (asker, other):
        node.do(events.BlobStored(one))
    node.receive(node.peers[0], blob_offer=facts_pb2.BlobOffer(blobs=[asker]))
    drop = DropBlobs((asker.sha256, other.sha256))
    assert node.replica._settle([drop], node.now) == [DropBlobs((other.sha256,))]
    assert copies(node).holders([asker]) == {node.me, node.peers[0]}
    assert node.replica.library.retention.blobs_kept == {asker.sha256}, "it is looked at again in the next pass"
    node.now += PROMISED_S
    assert node.replica._settle([drop], node.now) == [drop]


def test_a_push_counts_on_no_older_receipt_of_what_nobody_wants(node: Lone) -> None:
    node.do(events.BlobStored(DOC))
    copies(node).push([DOC], 10.0, 0.0)
    for peer in node.peers:
        holds(node, peer, DOC)
    assert copies(node).enough([DOC])
    assert to(copies(node).push([DOC], 12.0, 2.0), "blob_offer") != []  # the same result of another task
    assert not copies(node).enough([DOC])


def test_invented_receipts_do_not_fill_the_memory(node: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.copies.RECEIPTS_MAX", 10)
    for number in range(50):
        holds(node, E, ref(f"invented {number}"))
    assert len(copies(node).held_by) == 10


def test_a_peer_that_offers_without_end_delays_no_other_peers_offer(node: Lone) -> None:
    flood, other = node.peers[:2]
    fetches: list[Effect] = []
    for number in range(0, 2 * FETCH_QUEUE_OF_ONE_MAX, OFFER_REFS_MAX):
        refs = [ref(f"{number + i}") for i in range(OFFER_REFS_MAX)]
        fetches += node.receive(flood, blob_offer=facts_pb2.BlobOffer(blobs=refs))
    assert sum(isinstance(effect, FetchBlob) for effect in fetches) == FETCHES_OF_ONE_MAX
    assert len(copies(node)._fetches) == FETCH_QUEUE_OF_ONE_MAX
    asked = node.receive(other, blob_offer=facts_pb2.BlobOffer(blobs=[DOC]))
    assert [effect for effect in asked if isinstance(effect, FetchBlob)] == [FetchBlob(other, DOC)]
