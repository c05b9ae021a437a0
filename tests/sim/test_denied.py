"""Who counts as cut off once all is quiet: scripted worlds, in which nothing else goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from tests.sim.host import Host
from tests.sim.quiet import quiet_problems
from tests.sim.world import World

#: Until all have met; a cut is felt; what was said has reached all who are linked; all is quiet again.
MET_S, FELT_S, HEARD_S, QUIET_S = 8.0, 6.0, 2.0, 60.0


class Scripted:
    """Five nodes that have met."""

    def __init__(self) -> None:
        self.world = World(seed=5, nodes=5)
        for host in self.world.hosts:
            self.world.clock.after(0.1 * host.index, host.start)
        self.wait(MET_S)
        assert len(self.world.live) == 5
        assert not self.problems()

    def wait(self, seconds: float) -> None:
        self.world.clock.run_until(self.world.clock.now + seconds)

    def cut(self, part: set[int]) -> list[tuple[int, int]]:
        """Keep these apart from the others."""
        indices = [host.index for host in self.world.hosts]
        pairs = [(one, other) for one in indices for other in indices if (one in part) != (other in part)]
        self.world.network.block(pairs)
        self.wait(FELT_S)
        return pairs

    def heal(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.world.network.unblock(pairs)
        self.wait(QUIET_S)

    def revoke(self, issuer: int, victim: int) -> None:
        self.world.revocations.revoke(self.world.hosts[issuer], self.world.hosts[victim])
        self.wait(HEARD_S)

    def problems(self, live: Sequence[Host] | None = None) -> list[str]:
        """What the checks say, with quiet since a second ago."""
        world = self.world
        return quiet_problems(world.checks, live or world.live, world.hosts, world.clock.now - 1.0)

    @property
    def live(self) -> list[int]:
        return [host.index for host in self.world.live]


def test_whom_only_one_that_is_cut_off_itself_denies_stays_in_the_mesh() -> None:
    """n4 denies n3 while it is alone, and is denied before anybody heard it (seed 3730)."""
    scripted = Scripted()
    pairs = scripted.cut({4})
    scripted.revoke(4, 3)
    scripted.revoke(1, 4)
    scripted.heal(pairs)
    assert scripted.live == [0, 1, 2, 3]
    assert not scripted.problems()


def test_a_denial_that_one_in_the_mesh_heard_counts_though_who_said_it_is_cut_off() -> None:
    """n4 denies n3 before n2, which is beside it, and only n4 is denied by the others then."""
    scripted = Scripted()
    pairs = scripted.cut({2, 4})
    scripted.revoke(4, 3)
    scripted.revoke(1, 4)
    scripted.heal(pairs)
    assert scripted.live == [0, 1, 2]
    assert not scripted.problems()


def test_one_that_withdrew_is_out_though_nobody_who_stays_knows_why() -> None:
    """n4 denies n3 before n3 alone, and never comes back."""
    scripted = Scripted()
    pairs = scripted.cut({3, 4})
    scripted.revoke(4, 3)
    scripted.world.hosts[4].crash(notice_max_s=0.05)
    scripted.heal(pairs)
    assert scripted.live == [0, 1, 2]
    assert not scripted.problems()


def test_a_ghost_is_seen() -> None:
    """A node that is denied and still in the others' views, as it is until they hear of it."""
    scripted = Scripted()
    scripted.cut({2, 4})
    scripted.revoke(4, 3)
    assert scripted.live == [0, 1, 2, 4]
    assert [problem for problem in scripted.problems() if "1 ghosts" in problem]
