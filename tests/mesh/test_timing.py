"""The presets: memberlist's published figures."""

import pytest

from mesh.timing import LAN, LOCAL, PRESETS, WAN, Timing


def test_the_presets_are_memberlists() -> None:
    assert PRESETS == {"lan": LAN, "wan": WAN, "local": LOCAL}
    read = {name: (t.probe_interval_s, t.probe_timeout_s, t.indirect_probes, t.suspicion_mult, t.suspicion_max_mult,
                   t.retransmit_mult, t.gossip_interval_s, t.gossip_peers, t.exchange_interval_s, t.awareness_max)
            for name, t in PRESETS.items()}  # fmt: skip
    assert read["lan"] == (1.0, 0.5, 3, 4, 6, 4, 0.2, 3, 30.0, 8)
    assert read["wan"] == (5.0, 3.0, 3, 6, 6, 4, 0.5, 4, 60.0, 8)
    assert read["local"] == (1.0, 0.2, 1, 3, 6, 2, 0.1, 3, 15.0, 8)


@pytest.mark.parametrize(
    ("members", "min_s", "max_s", "confirmations", "retransmits"),
    [(1, 4.0, 24.0, 0, 4), (3, 4.0, 24.0, 0, 4), (4, 4.0, 24.0, 2, 4), (8, 4.0, 24.0, 2, 4), (9, 4.0, 24.0, 2, 4),
     (10, 4.0, 24.0, 2, 8), (100, 8.0, 48.0, 2, 12), (1000, 12.0, 72.0, 2, 16)],
)  # fmt: skip
def test_lan_times_at_sizes(members: int, min_s: float, max_s: float, confirmations: int, retransmits: int) -> None:
    assert LAN.suspicion_min_s(members) == pytest.approx(min_s)
    assert LAN.suspicion_max_s(members) == pytest.approx(max_s)
    assert LAN.confirmations(members) == confirmations
    assert LAN.retransmits(members) == retransmits


@pytest.mark.parametrize(
    ("members", "seconds"), [(1, 30.0), (32, 30.0), (33, 60.0), (64, 60.0), (65, 90.0), (1000, 180.0)]
)
def test_full_exchanges_grow_rare_in_large_meshes(members: int, seconds: float) -> None:
    assert LAN.exchange_every_s(members) == seconds


@pytest.mark.parametrize("timing", PRESETS.values())
def test_a_probe_leaves_time_for_others_to_try(timing: Timing) -> None:
    assert timing.probe_timeout_s * 1.8 < timing.probe_interval_s * 1.1
    assert timing.pause_s == 2 * timing.probe_interval_s
