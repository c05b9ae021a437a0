"""Probing: the order of a round, one probe a member, nacks in time, and what a pause of our own does to all of it."""

from mesh.probing import NACK_AT, RELAYS_MAX, RUNS_MAX, Probing
from tests.mesh.building import rng
from tests.mesh.members import named

MEMBERS = [named(number) for number in range(20)]


def test_every_member_is_probed_once_a_round_in_an_order_of_its_own() -> None:
    probing = Probing(rng())
    rounds = []
    for _ in range(5):
        probing.new_round(MEMBERS)
        rounds.append([target for _ in MEMBERS if (target := probing.next_target())])
        assert probing.next_target() is None
    assert all(sorted(order) == MEMBERS for order in rounds)
    assert len({tuple(order) for order in rounds}) == 5


def test_one_probe_a_member_at_a_time_and_a_bound_on_all() -> None:
    probing = Probing(rng())
    run = probing.start(named(1), 0.0, timeout_s=0.5, interval_s=1.0, regular=True)
    assert run is not None
    assert probing.probes(named(1))
    assert probing.start(named(1), 0.0, timeout_s=0.5, interval_s=1.0, regular=False) is None
    probing.end(run)
    probing.end(run)
    assert not probing.probes(named(1))
    started = [
        probing.start(named(number), 0.0, timeout_s=0.5, interval_s=1.0, regular=True) for number in range(RUNS_MAX + 5)
    ]
    assert started.count(None) == 5
    probing.validate()


def test_a_probe_is_due_at_its_timeout_and_once_others_try_at_its_end() -> None:
    probing = Probing(rng())
    run = probing.start(named(1), 10.0, timeout_s=0.5, interval_s=1.0, regular=True)
    assert run is not None
    assert probing.due(10.4) == []
    assert probing.due(10.5) == [run]
    run.indirect = True
    assert probing.due(10.9) == []
    assert probing.due(11.0) == [run]


def test_a_helper_gives_up_before_the_askers_time_is_over() -> None:
    probing = Probing(rng())
    probe_id = probing.relay(named(1), 77, named(2), 10.0, 0.5)
    assert probe_id is not None
    assert probing.nacks_due(10.0 + NACK_AT * 0.5 - 0.01) == []
    [relay] = probing.nacks_due(10.0 + NACK_AT * 0.5)
    assert (relay.origin, relay.origin_probe_id, relay.target) == (named(1), 77, named(2))
    assert probing.nacks_due(99.0) == []


def test_more_relays_than_the_limit_are_refused() -> None:
    probing = Probing(rng())
    made = [probing.relay(named(1), number, named(2), 0.0, 0.5) for number in range(RELAYS_MAX + 3)]
    assert made.count(None) == 3


def test_an_own_pause_makes_nobody_late() -> None:
    probing = Probing(rng())
    run = probing.start(named(1), 10.0, timeout_s=0.5, interval_s=1.0, regular=True)
    probing.relay(named(1), 77, named(2), 10.0, 0.5)
    probing.forgive(3600.0)
    assert probing.due(3610.4) == []
    assert probing.nacks_due(3610.3) == []
    assert run is not None
    assert probing.due(3610.5) == [run]
