"""What becomes of a link where this node's own code fails on what came on it, or the peer says too much."""

import asyncio

import pytest

from mesh.identity import NodeId
from mesh.wire import mesh_pb2
from node.trimming import NAME_CHARACTERS_MAX
from tests.node.linking import Made
from tests.node.test_links import TWO, nodes, note

__all__ = ["nodes"]


async def test_a_link_that_ends_by_a_fault_inside_says_so_and_quotes_nothing(nodes: Made) -> None:
    a, b = await nodes(*TWO)

    async def fail(peer: NodeId, message: mesh_pb2.LinkMessage) -> None:
        raise ValueError(message.leave.reason)

    b.message_received = fail  # type: ignore[method-assign]
    await a.dial(b)
    await b.until(lambda: b.opened == [a.me])
    assert a.links.send(b.me, note("a secret"))
    await b.until(lambda: b.closed == [a.me])
    [said] = [line for line in b.said if "ValueError" in line]
    assert said.startswith(f"the link with {a.me} ended by ValueError at test_link_faults.py:")
    assert "secret" not in "".join(b.said)


@pytest.mark.parametrize("turns", range(5))
async def test_a_peer_that_is_denied_just_as_its_link_opens_is_cut_off(nodes: Made, turns: int) -> None:
    """gRPC ends no call in the midst of a write."""
    a, b = await nodes(*TWO)
    for rounds in range(1, 4):
        dialling = asyncio.create_task(a.dial(b))
        while len(b.opened) < rounds:  # noqa: ASYNC110  # the very turn in which it opens
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        b.denied.add(a.me)
        b.links.cut(a.me)
        b.callers.cut(a.me)
        await b.until(lambda: not b.callers.running(a.me))
        await dialling
        await a.until(lambda: not a.links.count(b.me))
        b.denied.clear()


async def test_a_name_of_megabytes_is_cut_on_both_sides_of_a_link(nodes: Made) -> None:
    a, b = await nodes(*TWO)
    for node in (a, b):
        hello = node.hello()
        hello.name = "x" * 1_000_000
        node.hello = lambda hello=hello: hello  # type: ignore[misc, method-assign]
    assert await a.dial(b) == b.me
    await b.until(lambda: b.opened == [a.me])
    names = [links.hello.name for one in (a, b) for [links] in one.links._links.values()]
    assert names == ["x" * NAME_CHARACTERS_MAX] * 2
