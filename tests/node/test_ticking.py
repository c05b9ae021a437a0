"""How often the machines are told the time, on a clock that passes only while everybody waits."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import events
from mesh.identity import NodeId
from mesh.wire import membership_pb2, mesh_pb2
from node.shell import ROUTINE, is_routine
from node.ticking import QUIET_AFTER_S, QUIET_TICK_S, TICK_S, Ticker
from scripts.benches._virtual_time import VirtualLoop
from tests.sim import host

#: Of sums of floats.
ABOUT = 1e-6
PEER = NodeId("a" * 32)


def ticks(until_s: float, stirs: Sequence[float] = (), stop_s: float | None = None) -> list[float]:
    """When it ticked, of a ticker that was started at 0, was stirred at these times and stopped at the end."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        began, seen = loop.time(), list[float]()
        ticker = Ticker(lambda: seen.append(loop.time() - began))
        ticker.start()
        for at in stirs:
            loop.call_at(began + at, ticker.stir)
        loop.call_at(began + (until_s if stop_s is None else stop_s), ticker.stop)
        await asyncio.sleep(until_s)
        return seen

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


def gaps(seen: Sequence[float]) -> list[float]:
    return [later - before for before, later in itertools.pairwise(seen)]


def test_while_nothing_happens_every_second_tick_is_left_out() -> None:
    seen = ticks(10.0)
    early = [at for at in seen if at <= QUIET_AFTER_S + ABOUT]
    assert gaps(early) == pytest.approx([TICK_S] * round(QUIET_AFTER_S / TICK_S))
    assert gaps(seen[len(early) :]) == pytest.approx([QUIET_TICK_S] * (len(seen) - len(early) - 1))
    assert len(seen) == pytest.approx(QUIET_AFTER_S / TICK_S + (10.0 - QUIET_AFTER_S) / QUIET_TICK_S, abs=2)


@given(st.lists(st.floats(0.0, 20.0), max_size=20))
def test_what_happens_waits_no_longer_for_a_tick_than_it_ever_did(stirs: list[float]) -> None:
    seen = ticks(25.0, stirs)
    assert max(gaps(seen)) <= QUIET_TICK_S + ABOUT
    assert min(gaps(seen)) >= TICK_S - ABOUT, "never more often than at the full pace"
    for at in stirs:
        following = [tick - at for tick in seen if at < tick <= at + QUIET_AFTER_S]
        assert following[0] <= TICK_S + ABOUT
        assert max(gaps(following)) <= TICK_S + ABOUT


def test_a_stopped_ticker_is_silent_whoever_stirs() -> None:
    assert max(ticks(20.0, stirs=[11.0, 12.0], stop_s=10.0)) <= 10.0


def test_quiet_ticks_are_no_further_apart_than_the_simulators() -> None:
    assert QUIET_TICK_S <= host.TICK_S


def test_beats_and_probes_are_routine_and_what_changes_something_is_not() -> None:
    kinds = [field.name for field in mesh_pb2.LinkMessage.DESCRIPTOR.fields]
    assert set(kinds) >= ROUTINE
    told = {kind: mesh_pb2.LinkMessage() for kind in kinds if kind != "hello"}
    for kind, message in told.items():
        getattr(message, kind).SetInParent()
        assert is_routine(events.Received(PEER, message)) == (kind in ROUTINE)
    hello = membership_pb2.Hello(node_id=PEER)
    for event in (events.LinkClosed(PEER), events.LinkOpened(hello, ""), events.Draining()):
        assert not is_routine(event)
    assert is_routine(events.Ticked(0))
