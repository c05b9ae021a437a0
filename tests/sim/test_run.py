"""Many worlds, one after the other, in one process."""

import gc

from tests.sim import run
from tests.sim.host import Host


def hosts() -> int:
    return sum(isinstance(one, Host) for one in gc.get_objects())


def test_a_world_is_gone_before_the_next_is_made() -> None:
    """Those of hundreds of nodes take a gigabyte each, and were kept until the collector came by: the machine ended
    the process."""
    gc.collect()
    before = hosts()
    gc.disable()
    try:
        assert run._run_one(7).ok
        assert hosts() == before
    finally:
        gc.enable()
