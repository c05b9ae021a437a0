"""Rendezvous hashing: everybody names the same holders, and who goes takes only its own share along."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import NodeId
from mesh.rendezvous import holders

NODES = [NodeId(f"{number:032x}") for number in range(12)]


@given(st.binary(max_size=40), st.permutations(NODES), st.integers(0, 15))
def test_the_order_in_which_nodes_are_known_does_not_matter(content: bytes, nodes: list[NodeId], count: int) -> None:
    chosen = holders(content, nodes, count)
    assert chosen == holders(content, NODES, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(NODES))


@given(st.binary(max_size=40), st.sampled_from(NODES))
def test_a_node_that_goes_moves_nobody_else(content: bytes, gone: NodeId) -> None:
    before = holders(content, NODES, len(NODES))
    after = holders(content, [node for node in NODES if node != gone], len(NODES))
    assert after == [node for node in before if node != gone]


def test_copies_are_spread_evenly() -> None:
    share = Counter(node for number in range(3000) for node in holders(number.to_bytes(4, "big"), NODES, 3))
    assert all(600 < share[node] < 900 for node in NODES), share  # 750 each on average
