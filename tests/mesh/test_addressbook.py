"""The address book: each address has its own backoff; seeds are never given up; what is linked is not dialled."""

import itertools

import pytest

from mesh.addressbook import (
    ADDRESSES_MAX,
    BACKOFF_LAST_S,
    BACKOFF_SEED_S,
    DIAL_TIMEOUT_S,
    FAILURES_MAX,
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
    assert dialled(book, 100.1) == []
    again = dialled(book, 100.7)
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
    assert ("10.2.1.40", 4000) not in book.entries
    book.dial_failed("10.2.0.7", 4000, 0.0)
    book.add("10.2.1.40", 4000, "mdns", 0.0)
    assert ("10.2.1.40", 4000) in book.entries
    assert ("10.2.0.7", 4000) not in book.entries
    assert ("10.1.0.1", 4000) in book.entries, "a seed makes no room"


def test_ends_of_unknown_dials_change_nothing(book: AddressBook) -> None:
    book.dial_failed("10.0.0.2", 4000, 0.0)
    book.dial_succeeded("10.0.0.2", 4000, B)
    book.link_closed(B, 0.0)
    assert not book.entries
