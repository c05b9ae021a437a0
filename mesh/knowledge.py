"""What the mesh knows: items that nodes added, less what was superseded or retracted, with keyword search.

Idea: an item is the fact that added it; only its author may supersede or retract it. Search is Okapi BM25 over words,
and over pairs of neighbouring characters in scripts written without spaces (CJK), so Chinese text is found too.

Source: Robertson and Zaragoza, "The probabilistic relevance framework: BM25 and beyond" (2009).

Does not: judge whether an item is true, or read blobs.
"""

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from mesh.facts import Fact, Place, StreamId
from mesh.identity import NodeId
from mesh.wire import facts_pb2

_K1 = 1.2
_B = 0.75


@dataclass(frozen=True)
class Item:
    item_id: bytes
    author: NodeId
    hybrid_clock: int
    content: facts_pb2.KnowledgeAdded


@dataclass
class Knowledge:
    """A commutative, idempotent fold: three collections that only grow."""

    added: dict[bytes, Item] = field(default_factory=dict)
    superseded: dict[bytes, set[NodeId]] = field(default_factory=dict)  # item → who said so
    retracted: dict[bytes, set[NodeId]] = field(default_factory=dict)
    _words: dict[bytes, Counter[str]] = field(default_factory=dict)  # derived: an item's words
    added_at: dict[bytes, Place] = field(default_factory=dict)
    _ended_ms: dict[tuple[bytes, StreamId], int] = field(default_factory=dict)  # when it was first taken back there
    _named_by: dict[bytes, set[bytes]] = field(default_factory=dict)  # blob → items

    def apply(self, fact: Fact) -> bool:
        match fact.kind:
            case "knowledge_added":
                item = Item(fact.hash, fact.author, fact.hybrid_clock, fact.body.knowledge_added)
                self.added[fact.hash] = item
                self.added_at[fact.hash] = Place(fact.stream_id, fact.sequence)
                if item.content.HasField("blob"):
                    self._named_by.setdefault(item.content.blob.sha256, set()).add(fact.hash)
                self._words[fact.hash] = Counter(words_of(" ".join(_searchable(item.content))))
            case "knowledge_superseded":
                self.superseded.setdefault(fact.body.knowledge_superseded.item_id, set()).add(fact.author)
                self._ended(fact.body.knowledge_superseded.item_id, fact)
            case "knowledge_retracted":
                self.retracted.setdefault(fact.body.knowledge_retracted.item_id, set()).add(fact.author)
                self._ended(fact.body.knowledge_retracted.item_id, fact)
            case _:
                return False
        return True

    def clear(self) -> None:
        for part in (self.added, self.superseded, self.retracted, self._words, self.added_at):
            part.clear()
        self._ended_ms.clear()
        self._named_by.clear()

    def taken_back(self) -> list[tuple[bytes, int]]:
        """Items that a word of their own stream took back, with the time (ms since 1970) of the first such word. A word
        of another stream may turn out to be void while the item is not (library.py)."""
        return [
            (item_id, ended_ms)
            for (item_id, stream_id), ended_ms in sorted(self._ended_ms.items())
            if item_id in self.added and self.added_at[item_id].stream_id == stream_id
        ]

    def forget(self, item_id: bytes) -> set[bytes]:
        """Retention dropped an item that does not hold. What is read does not change: the word that took it back stays,
        against the item's coming back from a node that has not heard it. Returns the blobs that no item names now."""
        item = self.added.pop(item_id)
        del self._words[item_id], self.added_at[item_id]
        name = item.content.blob.sha256
        by = self._named_by.get(name, set())
        by.discard(item_id)
        if by or not name:
            return set()
        self._named_by.pop(name, None)
        return {name}

    def names(self, sha256: bytes) -> bool:
        return sha256 in self._named_by

    def _ended(self, item_id: bytes, fact: Fact) -> None:
        key, time_ms = (item_id, fact.stream_id), fact.hybrid_clock >> 16
        self._ended_ms[key] = min(time_ms, self._ended_ms.get(key, time_ms))

    def current(self) -> list[Item]:
        """Items that hold: not superseded or retracted by their own author. In order of id."""
        return [
            item
            for item_id, item in sorted(self.added.items())
            if item.author not in self.superseded.get(item_id, ())
            and item.author not in self.retracted.get(item_id, ())
        ]

    def search(self, query: str, limit: int) -> list[tuple[float, Item]]:
        """The best `limit` items with their BM25 scores, best first; items without any word of the query never."""
        wanted = set(words_of(query))
        items = self.current()
        if not wanted or not items:
            return []
        mean_length = sum(self._words[item.item_id].total() for item in items) / len(items) or 1.0
        rarity: dict[str, float] = {}
        for word in wanted:
            holders = sum(1 for item in items if word in self._words[item.item_id])
            rarity[word] = math.log(1 + (len(items) - holders + 0.5) / (holders + 0.5))
        scored: list[tuple[float, Item]] = []
        for item in items:
            words = self._words[item.item_id]
            damping = _K1 * (1 - _B + _B * words.total() / mean_length)
            score = sum(rarity[word] * words[word] * (_K1 + 1) / (words[word] + damping) for word in wanted)
            if score > 0:
                scored.append((score, item))
        scored.sort(key=lambda hit: (-hit[0], hit[1].item_id))
        return scored[:limit]


def words_of(text: str) -> list[str]:
    """Search words of a text: case-folded runs of letters and digits; CJK runs as overlapping pairs of characters."""
    words: list[str] = []
    run = ""
    run_is_cjk = False
    for character in unicodedata.normalize("NFKC", text).casefold() + " ":
        is_word = character.isalnum()
        is_cjk = is_word and _is_cjk(character)
        if run and (not is_word or is_cjk != run_is_cjk):
            if run_is_cjk and len(run) > 1:
                words += [run[i : i + 2] for i in range(len(run) - 1)]
            else:
                words.append(run)
            run = ""
        if is_word:
            run += character
            run_is_cjk = is_cjk
    return words


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xAC00 <= code <= 0xD7AF or 0x20000 <= code <= 0x3FFFF
    )


def _searchable(content: facts_pb2.KnowledgeAdded) -> list[str]:
    return [content.title, content.text, *content.tags]
