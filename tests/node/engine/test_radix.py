"""The radix trie against a plain dictionary, over long random histories."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.engine.radix import RadixTrie, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_common_prefix_is_common_and_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


class AgainstDictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.trie: RadixTrie[int] = RadixTrie()
        self.model: dict[int, list[int]] = {}
        self.next = 0

    @rule(sequence=tokens)
    def insert(self, sequence: list[int]) -> None:
        self.trie.insert(self.next, sequence)
        self.model[self.next] = list(sequence)
        sequence.append(7)  # the trie keeps its own copy
        self.next += 1

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            key = data.draw(st.sampled_from(sorted(self.model)))
            self.trie.remove(key)
            del self.model[key]

    @rule(prompt=tokens)
    def longest(self, prompt: list[int]) -> None:
        length, key = self.trie.longest(prompt)
        assert length == max((common_prefix(held, prompt) for held in self.model.values()), default=0)
        if length:
            assert key is not None
            assert common_prefix(self.model[key], prompt) == length
        else:
            assert key is None

    @rule(prompt=tokens)
    def within(self, prompt: list[int]) -> None:
        found = self.trie.within(prompt)
        wanted = [(len(held), key) for key, held in self.model.items() if held == prompt[: len(held)]]
        assert sorted(found) == sorted(wanted)
        assert [length for length, _ in found] == sorted(length for length, _ in found)

    @invariant()
    def tokens_are_counted_once_where_they_are_a_common_beginning(self) -> None:
        beginnings = {tuple(held[:end]) for held in self.model.values() for end in range(1, len(held) + 1)}
        assert self.trie.tokens == len(beginnings)

    @invariant()
    def same_keys(self) -> None:
        assert len(self.trie) == len(self.model)
        assert all(key in self.trie for key in self.model)


TestAgainstDictionary = AgainstDictionary.TestCase
