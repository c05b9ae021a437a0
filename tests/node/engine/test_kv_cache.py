"""The prefix cache against a memory that remembers every token, so that a wrong belief about it shows at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.kv_cache import COPY_TOKENS_MIN, DOUBTS_MAX, KvCache, Slot
from node.engine.radix import common_prefix

LONG = list(range(1000, 1000 + 4 * COPY_TOKENS_MIN))


class Remembering:
    """A KV cache of plain lists: what `llama.Context` promises, in its three kinds."""

    def __init__(self, unified: bool = False, divisible: bool = True) -> None:
        self.unified = unified
        self.divisible = divisible
        self.cells: dict[int, list[int]] = {}

    def cut(self, sequence: int, length: int) -> bool:
        held = self.cells.get(sequence, [])
        kept = self.divisible or length in (0, len(held))
        self.cells[sequence] = held[:length] if kept else []
        return kept

    def share(self, source: int, sequence: int, length: int) -> None:
        assert self.unified
        assert not self.cells.get(sequence)
        self.cells[sequence] = self.cells[source][:length]

    def state(self, sequence: int) -> bytearray:
        return bytearray(b"".join(token.to_bytes(2, "big") for token in self.cells.get(sequence, [])))

    def restore(self, sequence: int, state: bytearray) -> bool:
        self.cells[sequence] = [int.from_bytes(state[i : i + 2], "big") for i in range(0, len(state), 2)]
        return True

    def feed(self, slot: Slot, tokens: list[int]) -> None:
        """What a decode does."""
        self.cells.setdefault(slot.id, []).extend(tokens)
        slot.held.extend(tokens)


prompts = st.builds(
    lambda shared, tail: LONG[:shared] + tail,
    st.sampled_from([0, 5, 20, 40, 64]),
    st.lists(st.integers(0, 1), min_size=1, max_size=20),
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["open", "close", "drop"]), prompts, st.integers(0, 3)), max_size=30),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 100, 1000]),
)
def test_what_a_slot_is_said_to_hold_is_what_it_holds(
    history: list[tuple[str, list[int], int]], unified: bool, divisible: bool, spill_bytes: int
) -> None:
    memory = Remembering(unified, divisible)
    cache = KvCache(memory, 3, spill_bytes)
    cache.read_s_per_token = 1.0  # reading is dear: whatever can be restored is
    busy: list[Slot] = []
    for action, prompt, which in history:
        cache.forget_copy()
        if action == "open" and cache.free:
            had = max((common_prefix(memory.cells.get(slot.id, []), prompt[:-1]) for slot in busy), default=0)
            slot, length = cache.open(prompt[:-1])
            assert slot.held == prompt[:length]
            if divisible and had >= COPY_TOKENS_MIN:
                assert length >= had
            memory.feed(slot, prompt[length:])
            busy.append(slot)
        elif action == "close" and busy:
            cache.close(busy.pop(which % len(busy)))
        elif action == "drop":
            cache.drop_idle()
            assert not any(slot.held for slot in cache.slots if not slot.busy)
        for slot in cache.slots:
            assert memory.cells.get(slot.id, []) == slot.held
            assert slot.busy == (slot in busy)
        assert cache.spill.used_bytes <= spill_bytes


def used(cache: KvCache, memory: Remembering, prompt: list[int]) -> Slot:
    slot, length = cache.open(prompt[:-1])
    memory.feed(slot, prompt[length:])
    return slot


def test_slot_used_longest_ago_gives_way() -> None:
    memory = Remembering()
    cache = KvCache(memory, 3, 0)
    first, second, third = (used(cache, memory, [n] * 40) for n in (1, 2, 3))
    for slot in (second, first, third):
        cache.close(slot)
    assert used(cache, memory, [4] * 40) is second


def test_a_trifle_does_not_cost_a_long_conversation() -> None:
    memory = Remembering()
    cache = KvCache(memory, 2, 0)
    conversation = used(cache, memory, [1, 2, *LONG])
    cache.close(conversation)
    slot, length = cache.open([1, 2, 9, 9, 9])
    assert slot is not conversation
    assert length == 0
    assert len(conversation.held) == len(LONG) + 2


def test_restoring_waits_until_it_is_cheaper_than_reading() -> None:
    memory = Remembering()
    cache = KvCache(memory, 1, 10_000)
    for prompt in (LONG, [7] * 40):
        cache.close(used(cache, memory, prompt))
    cache.read_s_per_token = 0.0
    slot, length = cache.open(LONG)
    assert length == 0
    cache.close(slot)
    cache.read_s_per_token = 1.0
    assert cache.open(LONG)[1] == len(LONG)
    assert cache.restored_tokens == len(LONG)


def test_a_slow_moment_does_not_end_restoring_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is paused during the first restoring; after that a restoring takes no time."""
    now = 0.0
    monkeypatch.setattr("node.engine.kv_cache.time.monotonic", lambda: now)

    class Pausing(Remembering):
        pause = 1000.0

        def restore(self, sequence: int, state: bytearray) -> bool:
            nonlocal now
            now += self.pause
            self.pause = 0.0
            return super().restore(sequence, state)

    memory = Pausing()
    cache = KvCache(memory, 1, 10_000)
    cache.read_s_per_token = 0.01
    prompts = (LONG, [7] * 40)
    restored = []
    for number in range(2 * DOUBTS_MAX + 8):
        before = cache.restored_tokens
        cache.close(used(cache, memory, [*prompts[number % 2], 1]))
        restored.append(cache.restored_tokens > before)
    assert restored[2], "the first that could be had: the guess is a quick copy"
    assert restored[3 : 3 + DOUBTS_MAX] == [False] * DOUBTS_MAX
    assert all(restored[3 + DOUBTS_MAX :])


@pytest.mark.parametrize("divisible", [True, False])
def test_beginning_of_a_sequence_helps_only_where_memory_can_be_cut(divisible: bool) -> None:
    memory = Remembering(divisible=divisible)
    cache = KvCache(memory, 2, 10_000)
    cache.close(used(cache, memory, LONG))
    assert cache.reach(LONG[:40]) == (40 if divisible else 0)
    assert cache.open(LONG[:40])[1] == (40 if divisible else 0)
    assert cache.reach([*LONG, 5]) == len(LONG)
    assert cache.open([*LONG, 5])[1] == len(LONG)


def test_state_of_the_longest_beginning() -> None:
    memory = Remembering()
    cache = KvCache(memory, 1, 10_000)
    assert cache.state_of(LONG) is None
    cache.close(used(cache, memory, LONG))
    found = cache.state_of(LONG[:30])
    assert found is not None
    assert found[0] == LONG
    cache.close(used(cache, memory, [7] * 40))
    assert cache.state_of(LONG[:30]) == found


def test_a_state_that_was_read_of_a_slot_is_not_that_of_what_the_slot_holds_next() -> None:
    """Three requests of one step: the second takes over the slot that the first copied from, with as many tokens."""
    memory = Remembering()
    cache = KvCache(memory, 4, 10_000)
    cache.read_s_per_token = 1.0
    length = 2 * COPY_TOKENS_MIN
    first, second = LONG[:length], [7 + token for token in LONG[:length]]
    cache.spill.put(second, bytearray(b"".join(token.to_bytes(2, "big") for token in second)))
    slots = [cache.open([])[0] for _ in range(4)]
    memory.feed(slots[0], first)
    for number, slot in enumerate(slots[1:]):
        memory.feed(slot, [number] * 4)
    for slot in slots:
        cache.close(slot)
    cache.forget_copy()
    cache.open([*first[:-4], 1])  # copies from the first slot
    slots[0].last_used = 0  # the next to give way
    taken, held = cache.open([*second, 2])
    assert (taken, held) == (slots[0], length)
    third, _ = cache.open([*second[:-2], 3])
    assert memory.cells[third.id] == third.held
