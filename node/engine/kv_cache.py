"""Which sequence of the KV cache a request gets, and what of its prompt is in it already: one prefix cache for all.

A prompt's beginning is taken from wherever the longest one is held: a finished sequence in an idle slot (taken over
where the prompt goes on from it, else copied), a sequence that another request is using at this moment (copied), or a
spilled one in ordinary memory. An idle slot that has to give way is spilled first.

A model whose memory can not be cut (recurrent, sliding window) uses a held sequence only as a whole: its state is that
of its last token, and the state of a beginning is not in it.

What was read under a LoRA adapter differs from what was read without: each adapter has a cache of its own, and only
what was read without one is spilled or given to others.

Does not: touch what a running request holds beyond `cut`, which its owner asks for.

Source: SGLang's RadixAttention and vLLM's automatic prefix caching share by blocks; here a sequence is the unit.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.engine.radix import RadixTrie, common_prefix
from node.engine.spill import Spill, Spilled

#: A shorter beginning is read again in less time than a copy takes to arrange.
COPY_TOKENS_MIN = 16

#: Weight of the newest measurement in a running mean.
_NEWEST = 0.2

#: After so many spilled prefixes in a row that did not seem worth restoring, one is restored all the same: a machine
#: that was slow once is not slow for ever, and only a restoring measures it.
DOUBTS_MAX = 16


class Memory(Protocol):
    """What this needs of `llama.Context`."""

    unified: bool
    divisible: bool

    def cut(self, sequence: int, length: int) -> bool: ...
    def share(self, source: int, sequence: int, length: int) -> None: ...
    def state(self, sequence: int) -> bytearray: ...
    def restore(self, sequence: int, state: bytearray) -> bool: ...


@dataclass
class Slot:
    """One sequence of the context. Invariant: `held` is what the KV cache holds for it, token by token."""

    id: int
    held: list[int] = field(default_factory=list)
    adapter: str = ""  # under which `held` was read
    last_used: int = 0  # number of the admission or release that touched it last
    busy: bool = False


class KvCache:
    """The slots of a context. Belongs to the thread that owns the context."""

    def __init__(self, memory: Memory, slots: int, spill_bytes: int) -> None:
        self._memory = memory
        self.slots = [Slot(i) for i in range(slots)]
        self.spill = Spill(spill_bytes, memory.divisible)
        self._idle: defaultdict[str, RadixTrie[int]] = defaultdict(RadixTrie)  # by adapter: what idle slots hold
        self._uses = 0
        self._copied: tuple[int, int, bytearray] | None = None  # slot, length held, state: of the last copy's source
        self.restored_tokens = 0
        #: Running means that decide whether a spilled prefix is worth copying.
        self.read_s_per_token = 1e-3
        self._restore_s_per_byte = 1e-9
        self._doubts = 0  # prefixes that were not restored since the last one that was

    @property
    def free(self) -> int:
        return sum(not slot.busy for slot in self.slots)

    def measured_reading(self, tokens: int, seconds: float) -> None:
        self.read_s_per_token += _NEWEST * (seconds / tokens - self.read_s_per_token)

    def reach(self, tokens: Sequence[int], adapter: str = "") -> int:
        """Tokens of this beginning of a prompt that could be had now."""
        return max(self._held(tokens, adapter)[0], self._spilled(tokens, adapter)[0])

    def open(self, prompt: Sequence[int], adapter: str = "") -> tuple[Slot, int]:
        """A slot for a request, and how much of `prompt` (what may be reused of its tokens) it holds. One is free."""
        prompt = list(prompt)
        length, source = self._held(prompt, adapter)
        spilled, key = self._spilled(prompt, adapter)
        kept = None if key is None or spilled - length < COPY_TOKENS_MIN else self.spill.get(key)
        if kept is not None and not self._worth_restoring(kept, spilled - length):
            kept = None
        goes_on = source is not None and not source.busy and length == len(source.held)
        if goes_on and kept is None:
            assert source is not None
            self._take(source)
            return source, length
        idle = [slot for slot in self.slots if not slot.busy]
        spare = [slot for slot in idle if slot is not source] or idle
        slot = min(spare, key=lambda slot: (slot.last_used, slot.id))
        self._take(slot)
        if slot.held and (slot is not source or length < len(slot.held)):
            self._save(slot)
        if kept is not None:
            self._restore(slot, kept, spilled)
        elif slot is source:
            self.cut(slot, length)
        else:
            self.cut(slot, 0)
            if source is not None and length >= COPY_TOKENS_MIN:
                self._copy(source, slot, length)
        slot.adapter = adapter
        return slot, len(slot.held)

    def close(self, slot: Slot) -> None:
        """The request is over; what the slot holds stays for others."""
        assert slot.busy
        slot.busy = False
        self._uses += 1
        slot.last_used = self._uses if slot.held else 0
        if slot.held:
            self._idle[slot.adapter].insert(slot.id, slot.held)
        self._copied = None

    def cut(self, slot: Slot, length: int) -> None:
        """Shorten what a slot holds; to nothing where its memory can not be cut."""
        if length < len(slot.held):
            kept = self._memory.cut(slot.id, length)
            slot.held = slot.held[:length] if kept else []

    def drop_idle(self) -> bool:
        """Give up all that idle slots hold. False: there was nothing."""
        idle = [slot for slot in self.slots if not slot.busy and slot.held]
        for slot in idle:
            self._idle[slot.adapter].remove(slot.id)
            self.cut(slot, 0)
            slot.last_used = 0
        return bool(idle)

    def spill_idle(self) -> None:
        """Give up all that idle slots hold, copied out before as far as there is room."""
        for slot in sorted(self.slots, key=lambda slot: slot.last_used):
            if slot.held and not slot.busy:
                self._save(slot)
        self.drop_idle()

    def state_of(self, prompt: Sequence[int]) -> tuple[list[int], bytearray] | None:
        """The tokens and state of the sequence that holds the longest beginning of `prompt`, which may hold more."""
        length, source = self._held(prompt, "")
        spilled, key = self.spill.longest(prompt)
        if key is not None and spilled > length:
            kept = self.spill.get(key)
            return kept.tokens, kept.state
        if source is None or not (state := self._memory.state(source.id)):
            return None
        return list(source.held), state

    def _take(self, slot: Slot) -> None:
        assert not slot.busy
        if self._copied is not None and self._copied[0] == slot.id:
            self._copied = None  # it is about to hold something else, maybe as long
        slot.busy = True
        self._uses += 1
        slot.last_used = self._uses
        if slot.id in self._idle[slot.adapter]:
            self._idle[slot.adapter].remove(slot.id)

    def _spilled(self, prompt: Sequence[int], adapter: str) -> tuple[int, int | None]:
        return (0, None) if adapter else self.spill.longest(prompt)

    def _held(self, prompt: Sequence[int], adapter: str) -> tuple[int, Slot | None]:
        """The longest beginning of `prompt` that the KV cache holds, and where; idle slots before busy ones."""
        if self._memory.divisible:
            best, key = self._idle[adapter].longest(prompt)
        else:
            whole = self._idle[adapter].within(prompt)
            best, key = whole[-1] if whole else (0, None)
        source = None if key is None else self.slots[key]
        for slot in self.slots:
            if slot.busy and slot.held and slot.adapter == adapter:
                length = common_prefix(slot.held, prompt)
                if length > best and (self._memory.divisible or length == len(slot.held)):
                    best, source = length, slot
        return best, source

    def _worth_restoring(self, kept: Spilled, gained: int) -> bool:
        worth = len(kept.state) * self._restore_s_per_byte < gained * self.read_s_per_token
        self._doubts = 0 if worth else self._doubts + 1
        return worth or self._doubts > DOUBTS_MAX

    def _restore(self, slot: Slot, kept: Spilled, length: int) -> None:
        begun = time.monotonic()
        done = self._memory.restore(slot.id, kept.state)
        rate = (time.monotonic() - begun) / len(kept.state)
        # One that was tried in doubt is new knowledge: the mean is of another time.
        weight = 1.0 if self._doubts else _NEWEST
        self._doubts = 0
        self._restore_s_per_byte += weight * (rate - self._restore_s_per_byte)
        slot.held = list(kept.tokens) if done else []
        self.cut(slot, length)
        self.restored_tokens += len(slot.held)

    def _copy(self, source: Slot, slot: Slot, length: int) -> None:
        """The empty slot gets the first tokens of `source`."""
        if self._memory.unified and self._memory.divisible:
            self._memory.share(source.id, slot.id, length)
            slot.held = source.held[:length]
            return
        # Several requests that wait for the same prefix copy it one after the other: its state is read once.
        if self._copied is None or self._copied[:2] != (source.id, len(source.held)):
            self._copied = (source.id, len(source.held), self._memory.state(source.id))
        state = self._copied[2]
        if state and self._memory.restore(slot.id, state):
            slot.held = list(source.held)
            self.cut(slot, length)

    def forget_copy(self) -> None:
        """Sequences are about to change: what was read of one for copying is stale."""
        self._copied = None

    def _save(self, slot: Slot) -> None:
        if not slot.adapter and self.spill.wants(slot.held):
            self.spill.put(slot.held, self._memory.state(slot.id))
