"""Which slot a request gets: the one that already holds the longest useful beginning of its prompt, else the oldest.

A finished sequence stays in its slot as a prefix cache. A slot is taken for its prefix only where that saves a
sensible part of the prompt; otherwise every request with the same first few template tokens would wipe out the one
long conversation that is worth keeping, while empty slots stand by.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

#: A prefix counts from this share of the prompt on (llama-server uses the same).
PREFIX_SHARE_MIN = 0.1


@dataclass
class Slot:
    """One sequence of the context. Invariant: `held` is what the KV cache holds for it, token by token."""

    id: int
    held: list[int] = field(default_factory=list)
    last_used: int = 0  # number of the admission that took it last
    adapter: str = ""  # under which `held` was computed


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def choose(free: Sequence[Slot], prompt: Sequence[int], adapter: str = "") -> tuple[Slot, int]:
    """The slot to use and the tokens of the prompt that it holds, computed under this adapter. `free` is not empty."""

    def held(slot: Slot) -> int:
        return common_prefix(slot.held, prompt) if slot.adapter == adapter else 0

    best = max(free, key=held)
    length = held(best)
    if length >= PREFIX_SHARE_MIN * len(prompt):
        return best, length
    oldest = min(free, key=lambda slot: (slot.last_used, slot.id))
    return oldest, held(oldest)
