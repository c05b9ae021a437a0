"""How often strangers may knock."""

from node.joining.pace import HOSTS_MAX, Pace


def test_a_host_has_its_measure_and_gets_it_back() -> None:
    pace = Pace(per_host=3, together=100)
    assert [pace.allows("a", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert pace.allows("b", 0.0)
    assert not pace.allows("a", 19.0)
    assert pace.allows("a", 40.0)


def test_all_together_have_one_too() -> None:
    pace = Pace(per_host=3, together=10)
    assert sum(pace.allows(str(number), 0.0) for number in range(50)) == 10


def test_one_host_does_not_use_up_what_all_have() -> None:
    pace = Pace(per_host=3, together=10)
    for _ in range(100):
        pace.allows("a", 0.0)
    assert sum(pace.allows("b", 0.0) for _ in range(3)) == 3


def test_many_hosts_take_no_memory() -> None:
    pace = Pace()
    for number in range(3 * HOSTS_MAX):
        pace.allows(str(number), 0.0)
    assert len(pace._hosts._buckets) == HOSTS_MAX
