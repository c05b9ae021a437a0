"""Ways to choose an engine for a dialogue, in virtual time; a part of `serve`.

Simulated, not measured: engines serve one request at a time at the rates of a small model on one laptop core, and keep
what they read and wrote in an LRU cache of whole blocks. What is real is all in front of them: the router
(node/router.py) with its costs, what it learns of prefixes and its second attempts, and the fair queue of each engine
(node/engine_door.py). The other ways are the same router with its choice in another order. Dialogues share a system
prompt by kind, grow by turns, and arrive at random, by each seed alike for all ways. KV is not moved.
"""

import asyncio
import random
import statistics
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from types import SimpleNamespace
from typing import Any, cast

from mesh.prefixes import Block, blocks_of
from mesh.wire import common_pb2, engine_pb2, facts_pb2, membership_pb2
from node.engine_door import EngineDoor
from node.route import Route
from node.router import Router
from scripts.benches import size
from scripts.benches._virtual_time import VirtualLoop

SEEDS = size("routing", 20)
ENGINES = 4
PREFILL_TOKENS_PER_S, DECODE_TOKENS_PER_S = 200.0, 40.0
CHARACTERS_PER_TOKEN = 4
KINDS, KIND_TOKENS = 6, 400
DIALOGUES, TURNS, TURN_TOKENS, ANSWER_TOKENS = 60, 6, 60, 40
STEP_TOKENS = 13  # of an answer after its first token, told at a time
GAP_S = 20.0  # mean pause of a person between two turns
CACHES = {"fit": 40_000, "overflow": 2_000}  # tokens an engine
LOAD = 0.6  # dialogues begin so often that all engines would be so busy without any cache
WARM = 0.2  # this part of the requests is not counted

Event = engine_pb2.GenerateEvent


class Engine:
    """Of `api.Engine` what its door asks for; one request at a time, as the door sees to."""

    def __init__(self, cache_tokens: int) -> None:
        self.loaded = engine_pb2.EngineLoaded(slots=1, context_tokens=cache_tokens)
        self._cached: OrderedDict[bytes, int] = OrderedDict()  # name of a block → its characters

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[Event, None]:
        parts = [f"{message.role}\0{message.content}" for message in request.messages]
        blocks = blocks_of(parts)
        total, held = sum(block.characters for block in blocks), self._held(blocks)
        started = Event.Started(prompt_tokens=tokens_of(total), cached_tokens=tokens_of(held))
        yield Event(started=started)
        await asyncio.sleep((total - held) / CHARACTERS_PER_TOKEN / PREFILL_TOKENS_PER_S)
        self._keep(blocks)
        text = text_of(blocks[-1].name.hex(), ANSWER_TOKENS)  # the same wherever it is asked
        yield Event(delta=Event.Delta(text=text[:CHARACTERS_PER_TOKEN], tokens=1))
        for told in range(1, ANSWER_TOKENS, STEP_TOKENS):
            until = min(ANSWER_TOKENS, told + STEP_TOKENS)
            await asyncio.sleep((until - told) / DECODE_TOKENS_PER_S)
            end = len(text) if until == ANSWER_TOKENS else until * CHARACTERS_PER_TOKEN
            yield Event(delta=Event.Delta(text=text[told * CHARACTERS_PER_TOKEN : end], tokens=until - told))
        self._keep(blocks_of([*parts, f"assistant\0{text}"]))
        usage = common_pb2.Usage(prompt_tokens=started.prompt_tokens, completion_tokens=ANSWER_TOKENS)
        yield Event(finished=Event.Finished(reason="stop", usage=usage))

    def _held(self, blocks: list[Block]) -> int:
        """Characters of the beginning that are cached."""
        held = 0
        for block in blocks:
            if block.name not in self._cached:
                break
            held += block.characters
        return held

    def _keep(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):  # the beginning of a prompt goes last
            self._cached.pop(block.name, None)
            self._cached[block.name] = block.characters
        while tokens_of(sum(self._cached.values())) > self.loaded.context_tokens:
            self._cached.popitem(last=False)


class ByCosts(Router):
    """The product's choice, on a node whose agents are the engines."""

    def __init__(self, cache_tokens: int, rng: random.Random) -> None:
        engines = {f"engine {number}": cast(Any, Engine(cache_tokens)) for number in range(ENGINES)}
        profile = facts_pb2.NodeProfile(name="node")
        for name in engines:
            profile.agents.add(
                agent=name,
                model="model",
                abilities=["chat"],
                prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
                decode_tokens_per_s=DECODE_TOKENS_PER_S,
                context_tokens=cache_tokens,
                slots=1,
            )
        # What a node tells of its queue is what others have there, and there are no others.
        idle = membership_pb2.NodeLoad()
        membership = SimpleNamespace(view=lambda: frozenset({"node"}), load_of=lambda _: idle)
        replica = SimpleNamespace(me="node", membership=membership, profiles=SimpleNamespace(of=lambda _: profile))
        self.door = EngineDoor(engines["engine 0"], engines.__getitem__)
        self.rng = rng
        super().__init__(cast(Any, replica), self.door, cast(Any, None))


class LeastLoaded(ByCosts):
    """The fewest requests that have their turn or wait for one; of as many, any."""

    def routes(
        self,
        request: engine_pb2.GenerateRequest,
        model: str = "",
        node: str = "",
        without: Collection[str] = (),
        like: str = "",
    ) -> tuple[list[Route], list[str]]:
        found, reasons = super().routes(request, model, node, without, like)
        return sorted(found, key=lambda route: (self.requests_at(route.agent.agent), self.rng.random())), reasons

    def requests_at(self, agent: str) -> int:
        return sum(self.door.turns_of(agent))


class AtRandom(LeastLoaded):
    def requests_at(self, agent: str) -> int:
        return 0


WAYS: dict[str, type[ByCosts]] = {"costs": ByCosts, "least_loaded": LeastLoaded, "random": AtRandom}


def measure() -> dict[str, float]:
    """Of each way, the median of all seeds, the least and the most; and how many seeds it was the quickest in."""
    found: dict[str, float] = {}
    for size_name, cache_tokens in CACHES.items():
        seen = {way: [simulate(WAYS[way], cache_tokens, seed) for seed in range(1, SEEDS + 1)] for way in WAYS}
        for way, values in seen.items():
            for place, what in enumerate(("ttft_s", "cached")):
                of_seeds = [value[place] for value in values]
                name = f"routed_{size_name}_{way}_{what}"
                found[name] = round(statistics.median(of_seeds), 3)
                found[f"{name}_least"], found[f"{name}_most"] = round(min(of_seeds), 3), round(max(of_seeds), 3)
            quickest = [min(seen, key=lambda one: seen[one][place][0]) for place in range(SEEDS)]
            found[f"routed_{size_name}_{way}_quickest"] = quickest.count(way)
    return found


def simulate(way: type[ByCosts], cache_tokens: int, seed: int) -> tuple[float, float]:
    """Mean seconds to the first token, and the mean part of a prompt that was cached."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_simulate(way, cache_tokens, seed))


async def _simulate(way: type[ByCosts], cache_tokens: int, seed: int) -> tuple[float, float]:
    rng = random.Random(seed)
    router = way(cache_tokens, random.Random(seed + 1))
    mean_tokens = KIND_TOKENS + TURNS / 2 * (TURN_TOKENS + ANSWER_TOKENS)
    service_s = mean_tokens / PREFILL_TOKENS_PER_S + ANSWER_TOKENS / DECODE_TOKENS_PER_S
    gap_s = TURNS * service_s / (LOAD * ENGINES)
    began_s = 0.0
    answers: list[tuple[float, float, float]] = []
    async with asyncio.TaskGroup() as group:
        for dialogue in range(DIALOGUES):
            began_s += rng.expovariate(1 / gap_s)
            pauses = [began_s, *(rng.expovariate(1 / GAP_S) for _ in range(TURNS - 1))]
            group.create_task(_talk(router, dialogue, pauses, answers))
    counted = sorted(answers)[int(WARM * len(answers)) :]
    return statistics.fmean(wait for _, wait, _ in counted), statistics.fmean(cached for *_, cached in counted)


async def _talk(router: Router, dialogue: int, pauses: list[float], answers: list[tuple[float, float, float]]) -> None:
    """One dialogue, a turn after each pause. Adds of each when it was asked, what its first token took, and the part of
    its prompt that was cached."""
    now = asyncio.get_running_loop().time
    kind = engine_pb2.ChatMessage(role="system", content=text_of(f"kind {dialogue % KINDS}", KIND_TOKENS))
    request = engine_pb2.GenerateRequest(messages=[kind], max_tokens=ANSWER_TOKENS)
    for turn, pause_s in enumerate(pauses):
        await asyncio.sleep(pause_s)
        request.messages.add(role="user", content=text_of(f"{dialogue} asks {turn}", TURN_TOKENS))
        asked_at, heard, cached, first_s = now(), "", 0.0, -1.0
        async for event in router.generate(router.choose(request), request):
            if event.HasField("started"):
                cached = event.started.cached_tokens / event.started.prompt_tokens
            elif event.HasField("delta"):
                first_s = now() - asked_at if first_s < 0 else first_s
                heard += event.delta.text
        request.messages.add(role="assistant", content=heard)
        answers.append((asked_at, first_s, cached))


def tokens_of(characters: int) -> int:
    return characters // CHARACTERS_PER_TOKEN


def text_of(name: str, tokens: int) -> str:
    """A text of its own for each name."""
    return (name + " ") * (tokens * CHARACTERS_PER_TOKEN // (len(name) + 1))
