"""What a node says of itself."""

from mesh.journal import Journal
from node.overview import facts_digest
from tests.mesh.building import KEYS, Author
from tests.mesh.test_forked import fork_of_place, profile


def test_nodes_of_which_one_lacks_a_proven_fork_tell_different_digests_of_their_facts() -> None:
    """They read different things."""
    last = profile(Author(KEYS[7], 1), 1)
    whole, cut = Journal(), Journal()
    assert facts_digest(whole) == facts_digest(cut)
    cut.void(fork_of_place(last))
    assert last.stream_id in cut.forks
    assert facts_digest(whole) != facts_digest(cut)
