"""What is kept of responses is bounded, and each caller's own."""

import pytest

from mesh.wire import engine_pb2
from node.http import response_store
from node.http.response_store import HELD_S, ResponseStore

HELLO = [engine_pb2.ChatMessage(role="user", content="hello")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_the_makers_own_and_ends() -> None:
    clock = Clock()
    store = ResponseStore(clock)
    store.put("r", "me", {"id": "r"}, HELLO)
    assert store.get("r", "you") is None
    assert not store.remove("r", "you")
    clock.now = HELD_S - 1
    held = store.get("r", "me")
    assert held is not None
    assert held.messages == HELLO
    clock.now += HELD_S - 1
    assert store.get("r", "me") is not None, "its time starts again with each use"
    clock.now += HELD_S + 1
    assert store.get("r", "me") is None
    assert len(store) == 0


def test_removed_is_gone() -> None:
    store = ResponseStore(Clock())
    store.put("r", "me", {}, HELLO)
    assert store.remove("r", "me")
    assert store.get("r", "me") is None


def test_one_caller_pushes_its_own_out_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "NUMBER_OF_ONE_MAX", 3)
    store = ResponseStore(Clock())
    store.put("yours", "you", {}, HELLO)
    for i in range(10):
        store.put(f"r{i}", "me", {}, HELLO)
    assert store.get("yours", "you") is not None
    assert [i for i in range(10) if store.get(f"r{i}", "me")] == [7, 8, 9]


def test_bytes_are_bounded_for_one_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "BYTES_OF_ONE_MAX", 1000)
    monkeypatch.setattr(response_store, "BYTES_MAX", 1500)
    store = ResponseStore(Clock())
    store.put("huge", "me", {"x": "y" * 2000}, HELLO)
    assert len(store) == 0
    for i in range(10):
        store.put(f"r{i}", f"me{i // 4}", {"x": "y" * 400}, HELLO)
    assert sum(held.size for held in store._held.values()) <= 1500
    assert store.get("r9", "me2") is not None
