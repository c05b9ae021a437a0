"""Which held token sequence shares the longest beginning with a prompt: a radix trie.

Every key stands for one sequence of tokens; sequences that begin alike share the path from the root. A lookup walks one
path, so its time grows with the prompt and not with the number of sequences.

A pure machine: no clock, no library. Not thread-safe.

Source: Morrison's PATRICIA (1968); the use for KV caches is that of RadixAttention (SGLang, 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning. Halves the range: slices are compared at C's speed."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # left[:low] is common, left[:high] is not
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False)
class _Node(Generic[K]):
    """Invariant, but for the root: `edge` is not empty, and there is a key here or there are two children."""

    edge: list[int]  # tokens from the parent to here
    parent: "_Node[K] | None"
    children: "dict[int, _Node[K]]" = field(default_factory=dict)  # by the first token of their edge
    keys: dict[K, None] = field(default_factory=dict)  # of the sequences that end here, in order of insertion


class RadixTrie(Generic[K]):
    """Sequences by key. Empty sequences are allowed."""

    def __init__(self) -> None:
        self._root: _Node[K] = _Node([], None)
        self._at: dict[K, _Node[K]] = {}
        self.tokens = 0  # on all edges: those of all sequences, common beginnings counted once

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def insert(self, key: K, tokens: Sequence[int]) -> None:
        """The key is new."""
        assert key not in self._at
        rest, node = list(tokens), self._root
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                child = _Node(rest, node)
                node.children[rest[0]] = child
                self.tokens += len(rest)
                node, rest = child, []
                break
            length = common_prefix(child.edge, rest)
            if length < len(child.edge):
                child = self._split(child, length)
            node, rest = child, rest[length:]
        node.keys[key] = None
        self._at[key] = node

    def remove(self, key: K) -> None:
        """The key is there."""
        node = self._at.pop(key)
        del node.keys[key]
        while node.parent is not None and not node.keys and len(node.children) < 2:
            parent = node.parent
            first = node.edge[0]
            if node.children:
                (child,) = node.children.values()
                child.edge = node.edge + child.edge
                child.parent = parent
                parent.children[first] = child
                return
            del parent.children[first]
            self.tokens -= len(node.edge)
            node = parent

    def longest(self, tokens: Sequence[int]) -> tuple[int, K | None]:
        """Length of the longest beginning that some sequence shares, and the key of one that does."""
        rest, node, length = list(tokens), self._root, 0
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                break
            common = common_prefix(child.edge, rest)
            length, node, rest = length + common, child, rest[common:]
            if common < len(child.edge):
                break
        return (length, self._any_below(node)) if length else (0, None)

    def within(self, tokens: Sequence[int]) -> list[tuple[int, K]]:
        """Sequences that are a beginning of `tokens`, whole: their lengths and keys, shortest first."""
        rest, node, length = list(tokens), self._root, 0
        found = [(0, key) for key in node.keys]
        while rest:
            child = node.children.get(rest[0])
            if child is None or child.edge != rest[: len(child.edge)]:
                break
            length, node, rest = length + len(child.edge), child, rest[len(child.edge) :]
            found += [(length, key) for key in node.keys]
        return found

    def _split(self, child: _Node[K], length: int) -> _Node[K]:
        """A node in the middle of the child's edge."""
        assert 0 < length < len(child.edge)
        assert child.parent is not None
        middle = _Node(child.edge[:length], child.parent)
        child.parent.children[child.edge[0]] = middle
        child.edge = child.edge[length:]
        child.parent = middle
        middle.children[child.edge[0]] = child
        return middle

    def _any_below(self, node: _Node[K]) -> K | None:
        while not node.keys:
            if not node.children:
                return None
            node = next(iter(node.children.values()))
        return next(reversed(node.keys))
