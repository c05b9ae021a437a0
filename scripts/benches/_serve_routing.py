"""Ways to choose a node for a dialogue, in virtual time; a part of `serve`.

Simulated, not measured: engines serve one request at a time at the rates of a small model on one laptop core, and keep
what they read in an LRU cache of whole blocks. What is real is the choice: the router's own knowledge of prefixes
(mesh/prefixes.py) and cost model (solver/costs.py), told only what a router learns. Dialogues share a system prompt by
kind, grow by turns, and arrive at random (a fixed seed), the same for all ways. KV is not moved.
"""

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.prefixes import Block, Prefixes, blocks_of
from solver.costs import AgentLoad, Cached, TaskNeed, cost_terms

NODES = 4
PREFILL_TOKENS_PER_S, DECODE_TOKENS_PER_S = 200.0, 40.0
CHARACTERS_PER_TOKEN = 4
KINDS, KIND_TOKENS = 6, 400
DIALOGUES, TURNS, TURN_TOKENS, ANSWER_TOKENS = 60, 6, 60, 40
GAP_S = 20.0  # mean pause of a person between two turns
CACHES = {"fit": 40_000, "overflow": 2_000}  # tokens a node
LOAD = 0.6  # dialogues begin so often that all nodes would be so busy without any cache
WARM = 0.2  # this part of the requests is not counted


@dataclass
class Engine:
    """One at a time, with an LRU cache of blocks."""

    cache_tokens: int
    free_at: float = 0.0
    cached: OrderedDict[bytes, int] = field(default_factory=OrderedDict)

    def serve(self, blocks: list[Block], at: float) -> tuple[float, float, float]:
        """When the first token comes, when the last does, and the part of the prompt that was cached."""
        hit = 0
        for block in blocks:
            if block.name not in self.cached:
                break
            hit += block.characters
        total = sum(block.characters for block in blocks)
        first = max(at, self.free_at) + (total - hit) / CHARACTERS_PER_TOKEN / PREFILL_TOKENS_PER_S
        self.free_at = first + ANSWER_TOKENS / DECODE_TOKENS_PER_S
        for block in reversed(blocks):  # the beginning of a prompt goes last
            self.cached.pop(block.name, None)
            self.cached[block.name] = block.characters
        while sum(self.cached.values()) / CHARACTERS_PER_TOKEN > self.cache_tokens:
            self.cached.popitem(last=False)
        return first, self.free_at, hit / total


Choose = Callable[[list[Engine], list[Block], float, Prefixes, random.Random], int]


def by_prefix(engines: list[Engine], blocks: list[Block], at: float, known: Prefixes, _: random.Random) -> int:
    tokens = sum(block.characters for block in blocks) // CHARACTERS_PER_TOKEN
    costs = []
    for number, engine in enumerate(engines):
        queued = max(0.0, engine.free_at - at)
        load = AgentLoad(
            str(number),
            PREFILL_TOKENS_PER_S,
            DECODE_TOKENS_PER_S,
            queued_output_tokens=int(queued * DECODE_TOKENS_PER_S),
        )
        held = known.held(blocks, str(number), engine.cache_tokens)
        terms = cost_terms(load, TaskNeed("chat", tokens, ANSWER_TOKENS), Cached(int(held * tokens)))
        assert terms is not None
        costs.append((sum(terms.values()), number))
    return min(costs)[1]


def least_loaded(engines: list[Engine], _: list[Block], at: float, __: Prefixes, rng: random.Random) -> int:
    return min(range(len(engines)), key=lambda number: (max(0.0, engines[number].free_at - at), rng.random()))


def at_random(engines: list[Engine], _: list[Block], __: float, ___: Prefixes, rng: random.Random) -> int:
    return rng.randrange(len(engines))


WAYS: dict[str, Choose] = {"prefix": by_prefix, "least_loaded": least_loaded, "random": at_random}


def measure() -> dict[str, float]:
    found = {}
    for size_name, cache_tokens in CACHES.items():
        for way, choose in WAYS.items():
            first_s, cached = simulate(choose, cache_tokens)
            found[f"routed_{size_name}_{way}_ttft_s"] = round(first_s, 3)
            found[f"routed_{size_name}_{way}_cached"] = round(cached, 3)
    return found


def simulate(choose: Choose, cache_tokens: int, seed: int = 1) -> tuple[float, float]:
    """Mean seconds to the first token, and the mean part of a prompt that was cached."""
    rng, ties = random.Random(seed), random.Random(seed + 1)
    mean_tokens = KIND_TOKENS + TURNS / 2 * (TURN_TOKENS + ANSWER_TOKENS)
    service_s = mean_tokens / PREFILL_TOKENS_PER_S + ANSWER_TOKENS / DECODE_TOKENS_PER_S
    gap_s = TURNS * service_s / (LOAD * NODES)
    due: list[tuple[float, int, int]] = []  # when, dialogue, turn
    began = 0.0
    for dialogue in range(DIALOGUES):
        began += rng.expovariate(1 / gap_s)
        heapq.heappush(due, (began, dialogue, 0))
    pauses = [[rng.expovariate(1 / GAP_S) for _ in range(TURNS)] for _ in range(DIALOGUES)]
    engines, known = [Engine(cache_tokens) for _ in range(NODES)], Prefixes()
    waits, hits = [], []
    while due:
        at, dialogue, turn = heapq.heappop(due)
        parts = [text_of(f"kind {dialogue % KINDS}", KIND_TOKENS)]
        for past in range(turn + 1):
            parts.append(text_of(f"{dialogue} asks {past}", TURN_TOKENS))
            if past < turn:
                parts.append(text_of(f"{dialogue} hears {past}", ANSWER_TOKENS))
        blocks = blocks_of(parts)
        number = choose(engines, blocks, at, known, ties)
        tokens = sum(block.characters for block in blocks) // CHARACTERS_PER_TOKEN
        expected = known.expected(blocks, str(number), cache_tokens)
        known.sent(blocks, str(number), int(tokens * (1 - expected)))
        first, last, hit = engines[number].serve(blocks, at)
        known.answered(str(number), expected, hit)
        waits.append(first - at)
        hits.append(hit)
        if turn + 1 < TURNS:
            heapq.heappush(due, (last + pauses[dialogue][turn], dialogue, turn + 1))
    counted = slice(int(WARM * len(waits)), None)
    return sum(waits[counted]) / len(waits[counted]), sum(hits[counted]) / len(hits[counted])


def text_of(name: str, tokens: int) -> str:
    """A text of its own for each name."""
    return (name + " ") * (tokens * CHARACTERS_PER_TOKEN // (len(name) + 1))
