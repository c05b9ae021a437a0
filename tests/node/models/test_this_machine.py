"""Facts of this very machine, and of a made-up one's power limits."""

from pathlib import Path

from node.models.this_machine import Measured, read_rate, this_machine, watts_max


def test_memory_is_read_at_a_believable_rate() -> None:
    assert 0.2e9 < read_rate(1, 0.05) < 1e12


def test_what_a_node_measured_spares_measuring() -> None:
    measured = Measured("some", 100, 200, 50.0, 20.0)
    machine = this_machine(measured)
    assert machine.measured is measured
    assert machine.read_bytes_per_s == 0.0
    assert machine.cores >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes


def test_power_limits_of_all_packages_are_added_and_parts_are_not(tmp_path: Path) -> None:
    for name, limit in (("intel-rapl:0", "45000000"), ("intel-rapl:1", "15000000"), ("intel-rapl:0:0", "9000000")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "constraint_0_name").write_text("long_term\n")
        (folder / "constraint_0_power_limit_uw").write_text(f"{limit}\n")
    (tmp_path / "intel-rapl:2").mkdir()  # says nothing
    assert watts_max(tmp_path) == 60.0
    assert watts_max(tmp_path / "none") == 0.0
