"""Prefixes that fell out of the KV cache, kept in ordinary memory: copying them back is far quicker than reading anew.

Bounded in bytes; the one that was useful longest ago goes first. A sequence that is a beginning of another one that is
kept is not kept twice, where the model's memory can be cut.

A pure store: it knows tokens and bytes, not the library. Not thread-safe.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from node.engine.radix import RadixTrie

#: Shorter ones are read again faster than they are looked after.
TOKENS_MIN = 16


@dataclass(frozen=True)
class Spilled:
    tokens: list[int]
    state: bytearray


class Spill:
    """Invariant: the states' sizes sum up to `used_bytes`, at most `limit_bytes`."""

    def __init__(self, limit_bytes: int, divisible: bool) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._divisible = divisible
        self._trie: RadixTrie[int] = RadixTrie()
        self._kept: OrderedDict[int, Spilled] = OrderedDict()  # the one used longest ago first
        self._next = 0

    def __len__(self) -> int:
        return len(self._kept)

    def wants(self, tokens: Sequence[int]) -> bool:
        """Would `put` keep it, if it is not too large?"""
        if self.limit_bytes == 0 or len(tokens) < TOKENS_MIN:
            return False
        length, key = self.longest(tokens)
        if length < len(tokens):
            return True
        assert key is not None
        self._kept.move_to_end(key)
        return False

    def put(self, tokens: Sequence[int], state: bytearray) -> bool:
        """False: not kept; see `wants`, or larger than all the room."""
        if not 0 < len(state) <= self.limit_bytes or not self.wants(tokens):
            return False
        if self._divisible:
            for _, key in self._trie.within(tokens):
                self._drop(key)
        while self.used_bytes + len(state) > self.limit_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[self._next] = Spilled(list(tokens), state)
        self._trie.insert(self._next, tokens)
        self.used_bytes += len(state)
        self._next += 1
        return True

    def longest(self, tokens: Sequence[int]) -> tuple[int, int | None]:
        """How much of the beginning of `tokens` can be had, and from which key."""
        if self._divisible:
            return self._trie.longest(tokens)
        found = self._trie.within(tokens)
        return found[-1] if found else (0, None)

    def get(self, key: int) -> Spilled:
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: int) -> None:
        self.used_bytes -= len(self._kept.pop(key).state)
        self._trie.remove(key)
