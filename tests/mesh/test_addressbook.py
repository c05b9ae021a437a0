"""The address book: each address has its own backoff; seeds are never given up; what is linked is not dialled."""

import itertools

import pytest

from mesh.addressbook import (
    ADDRESSES_MAX,
    BACKOFF_LAST_S,
    BACKOFF_SEED_S,
    DIAL_TIMEOUT_S,
    DIALS_MAX,
    FAILURES_MAX,
    MISSED_FOR_S,
    PROVING_DIALS,
    REDIAL_MAX_S,
    REDIAL_MIN_S,
    STRANGERS_BURST,
    STRANGERS_PER_S,
    YIELD_S,
    AddressBook,
)
from mesh.effects import Dial
from tests.mesh.building import A, B, C, rng

NOBODY = frozenset[str]()


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(A, rng())


def dialled(book: AddressBook, now: float, *linked: str) -> list[tuple[str, int]]:
    effects = book.tick(now, frozenset(linked))  # type: ignore[arg-type]
    book.validate()
    return [(effect.host, effect.port) for effect in effects if isinstance(effect, Dial)]


def dial_until_given_up(book: AddressBook, seconds: float) -> list[float]:
    """Fail every dial at once; when each was made."""
    times = []
    now = 0.0
    while now < seconds:
        for host, port in dialled(book, now):
            times.append(now)
            book.dial_failed(host, port, now)
        now += 0.05
    return times


def test_a_new_address_is_dialled_at_once_and_again_when_no_answer_came(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    assert dialled(book, 0.0) == [("10.0.0.2", 4000)]
    assert dialled(book, DIAL_TIMEOUT_S - 0.1) == []
    assert dialled(book, DIAL_TIMEOUT_S) == [("10.0.0.2", 4000)]


def test_waits_double_up_to_the_longest_and_then_the_address_is_dropped(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "peer", 0.0)
    times = dial_until_given_up(book, 1000.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == FAILURES_MAX + 1
    assert waits[0] < 0.7
    assert max(waits) <= BACKOFF_LAST_S * 1.2 + 0.1
    assert min(waits[8:]) >= BACKOFF_LAST_S * 0.8
    assert not book.entries


def test_seeds_are_kept_and_tried_often(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "seed", 0.0)
    times = dial_until_given_up(book, 600.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) > FAILURES_MAX * 4
    assert max(waits) <= BACKOFF_SEED_S * 1.2 + 0.1
    assert book.entries


def test_a_seed_that_was_found_otherwise_before_is_a_seed(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "cache", 0.0)
    book.add("10.0.0.2", 4000, "seed", 0.0)
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    assert [entry.found_by for entry in book.entries.values()] == ["seed"]


def test_a_fresh_advert_ends_the_wait(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "cache", 0.0)
    for _ in range(8):
        book.dial_failed("10.0.0.2", 4000, 0.0)
    assert dialled(book, 1.0) == []
    book.add("10.0.0.2", 4000, "mdns", 1.0)
    assert dialled(book, 1.0) == [("10.0.0.2", 4000)]


def test_hearsay_does_not_end_the_wait(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "peer", 0.0, B)
    book.dial_failed("10.0.0.2", 4000, 0.0)
    book.add("10.0.0.2", 4000, "peer", 0.1, B)
    assert dialled(book, 0.1) == []


def test_a_linked_node_is_dialled_at_none_of_its_addresses_and_soon_after_its_link_closed(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    book.add("fd00::2", 4000, "peer", 0.0, B)
    book.dial_succeeded("10.0.0.2", 4000, B)
    assert dialled(book, 100.0, B) == []
    book.link_closed(B, 100.0)
    assert dialled(book, 100.0 + REDIAL_MIN_S / 2) == []
    again = dialled(book, 100.0 + REDIAL_MAX_S)
    assert len(again) == 1, "one address of a node at a time"
    assert book.found_by(B) == "mdns"
    assert book.found_by(C) == "inbound"


def test_an_own_address_is_dialled_once_and_never_again(book: AddressBook) -> None:
    book.add("10.0.0.1", 4000, "mdns", 0.0)
    assert dialled(book, 0.0)
    book.dial_succeeded("10.0.0.1", 4000, A)
    book.add("10.0.0.1", 4000, "mdns", 1.0)
    book.add("10.0.0.7", 4000, "peer", 1.0, A)
    assert dialled(book, 100.0) == []
    assert not book.entries


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_are_none_are_left_out(book: AddressBook, port: int) -> None:
    book.add("10.0.0.2", port, "seed", 0.0)
    assert not book.entries


def test_the_book_is_bounded_and_drops_what_never_answered_first(book: AddressBook) -> None:
    book.add("10.1.0.1", 4000, "seed", 0.0)
    book.dial_failed("10.1.0.1", 4000, 0.0)
    for number in range(ADDRESSES_MAX + 50):
        book.add(f"10.2.{number // 256}.{number % 256}", 4000, "mdns", 0.0)
    assert len(book.entries) == ADDRESSES_MAX
    assert ("10.2.8.40", 4000) not in book.entries
    book.dial_failed("10.2.0.7", 4000, 0.0)
    book.add("10.2.8.40", 4000, "mdns", 0.0)
    assert ("10.2.8.40", 4000) in book.entries
    assert ("10.2.0.7", 4000) not in book.entries
    assert ("10.1.0.1", 4000) in book.entries, "a seed makes no room"


def test_ends_of_unknown_dials_change_nothing(book: AddressBook) -> None:
    book.dial_failed("10.0.0.2", 4000, 0.0)
    book.dial_succeeded("10.0.0.2", 4000, B)
    book.link_closed(B, 0.0)
    assert not book.entries


def test_hearsay_of_both_leaves_the_first_dial_to_the_lower_id() -> None:
    lower, higher = AddressBook(A, rng()), AddressBook(B, rng())
    lower.add("10.0.0.2", 4000, "peer", 0.0, B)
    higher.add("10.0.0.1", 4000, "peer", 0.0, A)
    assert dialled(lower, 0.0)
    assert not dialled(higher, 0.0)
    assert dialled(higher, YIELD_S)


def test_dials_under_way_are_bounded_and_others_wait_their_turn(book: AddressBook) -> None:
    for number in range(100):
        book.add(f"10.2.0.{number}", 4000, "mdns", 0.0)
    first = dialled(book, 0.0)
    assert len(first) == DIALS_MAX
    assert dialled(book, 0.1) == []
    for host, port in first[:5]:
        book.dial_failed(host, port, 0.2)
    assert len(dialled(book, 0.2)) == 5


def test_nothing_is_looked_through_while_nothing_is_due(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    assert dialled(book, 0.0)
    book.dial_succeeded("10.0.0.2", 4000, B)
    assert dialled(book, 10.0, B) == []
    assert book.due_at == float("inf")
    book.link_closed(B, 10.0)
    assert book.due_at <= 10.0 + REDIAL_MAX_S


def test_a_missed_node_is_dialled_often_at_first_and_seldom_later(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    book.dial_succeeded("10.0.0.2", 4000, B)
    book.link_closed(B, 0.0)
    times = dial_until_given_up(book, MISSED_FOR_S + 300.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(wait for time, wait in zip(times, waits, strict=False) if time < MISSED_FOR_S - 10) < 6.1
    assert min(waits[-3:]) > 20.0
    assert book.entries


def test_a_stuck_link_is_dialled_beside_at_once_and_then_now_and_then(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    dialled(book, 0.0)
    book.dial_succeeded("10.0.0.2", 4000, B)
    assert dialled(book, 10.0, B) == []
    times = []
    for step in range(400):
        now = 10.0 + step * 0.05
        book.link_stuck(B, now)
        if dialled(book, now):
            times.append(now)
            book.dial_succeeded("10.0.0.2", 4000, B)
    assert times[0] <= 10.0 + REDIAL_MAX_S + 0.05
    assert len(times) == 4


def test_a_node_that_left_is_not_dialled_until_it_is_heard_of_again(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "mdns", 0.0)
    book.add("10.0.0.3", 4000, "seed", 0.0)
    for host in ("10.0.0.2", "10.0.0.3"):
        book.dial_succeeded(host, 4000, B)
    book.left(B)
    assert dialled(book, 1000.0) == [("10.0.0.3", 4000)], "the owner asked for it"
    book.add("10.0.0.2", 4000, "peer", 1001.0, B)
    assert dialled(book, 1001.0) == []
    book.returned(B, 1002.0)
    assert ("10.0.0.2", 4000) in dialled(book, 1003.5) + dialled(book, 1008.0)


def test_the_newest_hello_says_where_a_node_is(book: AddressBook) -> None:
    book.link_opened(B, [("10.0.0.2", 4000)], "10.0.0.2", 0.0)
    assert book.answered(B) == [("10.0.0.2", 4000)], "it dialled in from there"
    book.link_opened(B, [("10.0.0.7", 4000)], "", 1.0)
    assert set(book.entries) == {("10.0.0.7", 4000)}
    assert book.answered(B) == []
    book.dial_succeeded("10.0.0.7", 4000, B)
    assert book.answered(B) == [("10.0.0.7", 4000)]
    book.dial_succeeded("10.0.0.7", 4000, C)  # another lives there now
    assert (book.answered(B), book.answered(C)) == ([], [("10.0.0.7", 4000)])
    book.validate()


def test_a_node_that_dialled_in_from_elsewhere_is_dialled_where_it_says_a_few_times(book: AddressBook) -> None:
    book.link_opened(B, [("10.0.0.2", 4000)], "192.0.2.1", 0.0)
    times = []
    for step in range(2000):
        if dialled(book, step * 0.1, B):
            times.append(step * 0.1)
            book.dial_failed("10.0.0.2", 4000, step * 0.1)
    assert len(times) == PROVING_DIALS


def test_a_failed_dial_tells_who_answered_there_before(book: AddressBook) -> None:
    book.add("10.0.0.2", 4000, "peer", 0.0, B)
    assert book.dial_failed("10.0.0.2", 4000, 0.0) is None, "that is hearsay"
    book.dial_succeeded("10.0.0.2", 4000, B)
    assert book.dial_failed("10.0.0.2", 4000, 0.0) == B


def test_a_flood_of_addresses_makes_few_dials_a_second_and_delays_no_known_node(book: AddressBook) -> None:
    now, dials = 0.0, 0
    for number in range(ADDRESSES_MAX):
        book.add(f"10.1.{number // 250}.{number % 250 + 1}", 4000, "mdns", 0.0)
    while now < 30.0:
        for host, port in dialled(book, now):
            dials += 1
            book.dial_failed(host, port, now)
        now += 0.05
    assert STRANGERS_BURST + 29 * STRANGERS_PER_S < dials <= STRANGERS_BURST + 30 * STRANGERS_PER_S
    book.add("10.0.0.2", 4000, "seed", now)
    assert ("10.0.0.2", 4000) in dialled(book, now)
