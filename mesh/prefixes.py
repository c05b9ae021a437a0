"""Who holds what of a prompt's beginning: what one router knows from what it sent where.

Idea: a prompt is cut into blocks, each named by the hash of all text up to its end. Whoever was sent a prompt holds its
blocks in its cache, until it was sent more tokens since than its cache holds: least recently used goes first, as there.
What an agent says of its answers (`cached_tokens`) is held against what was expected, and expectations shrink where it
says less: another router fills its cache too, or it has none. So a dialogue stays where it is as long as that saves
time, and the saving is only one term of the cost.

Does not: know the tokens, or what other routers sent. A wrong guess costs the time that a prefix would have saved.

Source: prefix-aware routing as in SGLang's router (Zheng et al., "SGLang", 2024), with an LRU by tokens.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Characters of a block. A shorter common beginning is not worth knowing: some 70 tokens.
BLOCK_CHARACTERS = 256
#: Blocks looked at of one prompt, and blocks remembered. Threat: a client that sends endless new prompts.
BLOCKS_OF_ONE_MAX = 256
BLOCKS_MAX = 50_000
#: Agents remembered for one block.
HOLDERS_MAX = 8
#: Agents of which a trust is kept.
AGENTS_MAX = 1024
#: Weight of the newest answer in the trust.
NEWEST = 0.2


#: Name of what follows the last block that is looked at: nobody is known to hold it.
REST = b""


class Block(NamedTuple):
    name: bytes  # hash of all text up to its end, or REST
    characters: int


@dataclass(slots=True)
class _Known:
    """What is known of an agent's cache."""

    sent_tokens: int = 0  # ever, by this router
    trust: float = 1.0  # of what was expected to be cached, this part was


def blocks_of(parts: Iterable[str]) -> list[Block]:
    """A prompt's blocks, in order, with all its characters. `parts`: its messages, each with its role."""
    blocks: list[Block] = []
    digest, rest = b"", 0
    for part in parts:
        for start in range(0, max(1, len(part)), BLOCK_CHARACTERS):
            if len(blocks) == BLOCKS_OF_ONE_MAX:
                rest += len(part) - start
                break
            piece = part[start : start + BLOCK_CHARACTERS]
            content = digest + piece.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(content, digest_size=16).digest()
            blocks.append(Block(digest, len(piece)))
    return [*blocks, Block(REST, rest)] if rest else blocks


class Prefixes:
    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self._blocks_max = blocks_max
        self._holders: OrderedDict[bytes, dict[str, int]] = OrderedDict()  # agent → its sent_tokens then
        self._agents: OrderedDict[str, _Known] = OrderedDict()

    def held(self, blocks: Sequence[Block], agent: str, capacity_tokens: int) -> float:
        """The part of the prompt, 0 to 1, that `agent` should find in its cache of so many tokens; 0: unbounded."""
        return self.expected(blocks, agent, capacity_tokens) * self._known(agent).trust

    def expected(self, blocks: Sequence[Block], agent: str, capacity_tokens: int) -> float:
        """As `held`, if `agent` is trusted: what `answered` compares with."""
        known = self._known(agent)
        oldest = max(0, known.sent_tokens - capacity_tokens) if capacity_tokens else 0
        characters = 0
        for block in blocks:
            if self._holders.get(block.name, {}).get(agent, -1) < oldest:
                break
            characters += block.characters
        return characters / max(1, sum(block.characters for block in blocks))

    def sent(self, blocks: Sequence[Block], agent: str, tokens: int) -> None:
        """A prompt (and, at its end, its answer) went to `agent`; so many of its tokens were new there."""
        known = self._known(agent)
        known.sent_tokens += tokens
        for block in blocks:
            if block.name == REST:
                break
            holders = self._holders.setdefault(block.name, {})
            self._holders.move_to_end(block.name)
            holders.pop(agent, None)
            holders[agent] = known.sent_tokens
            if len(holders) > HOLDERS_MAX:
                del holders[next(iter(holders))]
        while len(self._holders) > self._blocks_max:
            self._holders.popitem(last=False)

    def answered(self, agent: str, expected: float, cached: float) -> None:
        """What was expected of the cache (`expected`) and what was found there: parts of the prompt, 0 to 1."""
        if expected <= 0.0:
            return
        known = self._known(agent)
        known.trust += NEWEST * (min(1.0, cached / expected) - known.trust)

    def validate(self) -> None:
        assert len(self._holders) <= self._blocks_max
        assert REST not in self._holders
        assert len(self._agents) <= AGENTS_MAX
        assert all(len(holders) <= HOLDERS_MAX for holders in self._holders.values())
        assert all(0.0 <= known.trust <= 1.0 for known in self._agents.values())

    def _known(self, agent: str) -> _Known:
        known = self._agents.get(agent)
        if known is None:
            known = self._agents[agent] = _Known()
            if len(self._agents) > AGENTS_MAX:
                self._agents.popitem(last=False)
        else:
            self._agents.move_to_end(agent)
        return known
