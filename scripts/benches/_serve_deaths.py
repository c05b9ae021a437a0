"""Death of the node that answers, in the middle of the answer; a part of `serve`.

Node A has no model; B and C have it. The node that serves is killed (SIGKILL to the daemon; its engine goes with it)
once 32 tokens have come; the other one knows nothing of the prompt until then. The uninterrupted run that the text is
compared with comes afterwards, on the node that died, started again: it has nothing cached either, so the two texts are
computed alike up to the move.
"""

import math
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from mesh.wire import engine_pb2, local_pb2
from scripts.benches import size
from scripts.daemons import Daemon, end_all, formed, until
from scripts.throwaway import ThrowawayMesh

DEATHS = size("deaths", 50)
TOKENS = 96
KILLED_AFTER = 32
READY_WITHIN_S = 180.0
#: Two tokens are so nearly equally likely that rounding can decide between them: each may move by what `noise_nats_max`
#: says, in either way. One node without any mesh that goes on from its own 32 tokens was seen to differ by up to 0.32
#: nats (135M, Q4_1, a CPU with AMX).
NEAR_TIE_NATS = 0.5
WORDS = ["lamp", "river", "sea", "bread", "map", "rain", "glass", "clock", "horse", "snow", "salt", "wind", "stone"]


@dataclass
class Heard:
    """What the client saw."""

    node: str = ""
    text: str = ""
    pause_s: float = 0.0  # the longest after the kill
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    logprobs: list[engine_pb2.TokenLogprob] = field(default_factory=list)


def request_of(number: int) -> engine_pb2.GenerateRequest:
    """About 64 tokens with the default model's template, different for each number from the first words on."""
    first, second = WORDS[number % len(WORDS)], WORDS[(number // len(WORDS) + 1 + number) % len(WORDS)]
    text = f"{number}: Write a long story about a {first} and a {second}, "
    text += "in the order in which things happened there, with many names and places."
    message = engine_pb2.ChatMessage(role="user", content=text)
    sampling = engine_pb2.Sampling(temperature=0.0)
    return engine_pb2.GenerateRequest(
        messages=[message], max_tokens=TOKENS, sampling=sampling, want_tokens=True, priority=1
    )


async def measure(model: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        options = ["--listen", "127.0.0.1:0", "--no-mdns", "--threads", "1"]
        mesh = ThrowawayMesh()
        a = Daemon(Path(folder) / "a", [*options, "--engine", "echo"], name="a", mesh=mesh)
        daemons = [a]
        a.start()
        try:
            at = (await a.ready(READY_WITHIN_S)).addresses[0]
            more = [*options, "--seed", f"{at.host}:{at.port}", "--model", str(model), "--ctx", "1024"]
            for name in "bc":
                daemons.append(Daemon(Path(folder) / name, more, name=name, mesh=mesh))
                daemons[-1].start()
            return await _deaths(daemons, model)
        finally:
            wrong = end_all(daemons)
            assert not wrong, wrong


async def _deaths(daemons: list[Daemon], model: Path) -> dict[str, float]:
    pauses: list[float] = []
    prompts: list[int] = []
    gaps: list[float] = []
    noise: list[float] = []
    same = numerics = 0
    for number in range(DEATHS):
        await _up(daemons)
        asked = local_pb2.ChatRequest(request=request_of(number), model=model.stem)
        if await _tells_logprobs(daemons[0], model):
            asked.request.logprobs, asked.request.top_logprobs = True, 5
        moved = await _heard(daemons, asked, kill=True)
        await _up(daemons)
        asked.node = moved.node  # started anew: it knows as little of the prompt as it did then
        whole = await _heard(daemons, asked)
        pauses.append(moved.pause_s)
        prompts.append(moved.prompt_tokens)
        noise.append(noise_nats(moved, whole))
        if moved.text == whole.text:
            same += 1
        else:
            gaps.append(near_tie_nats(moved, whole))
            numerics += gaps[-1] < NEAR_TIE_NATS
        print(
            f"  death {number + 1}: pause {moved.pause_s:.2f} s, same {same}, numerics {numerics}",
            file=sys.stderr,
            flush=True,
        )
    return {
        "pause_s_p50": round(statistics.median(pauses), 3),
        "pause_s_max": round(max(pauses), 3),
        "continued": same + numerics,
        "continued_by_numerics": numerics,
        "noise_nats_max": round(max(noise), 4),
        "divergence_nats_max": round(max([gap for gap in gaps if gap < math.inf], default=0.0), 4),
        "deaths": DEATHS,
        "death_prompt_tokens": statistics.median(prompts),
    }


async def _up(daemons: list[Daemon]) -> None:
    """All run, are ready, and A knows two agents with the model."""
    for one in daemons:
        if not one.running:
            one.start()
        await one.ready(READY_WITHIN_S)
    await formed(daemons)

    async def known() -> bool:
        return sum(len(info.profile.agents) for info in await daemons[0].nodes()) == len(daemons)

    await until(known, READY_WITHIN_S, "all agents are known")


async def _tells_logprobs(a: Daemon, model: Path) -> bool:
    agents = [agent for info in await a.nodes() for agent in info.profile.agents if agent.model == model.stem]
    return bool(agents) and all("logprobs" in agent.abilities for agent in agents)


async def _heard(daemons: list[Daemon], asked: local_pb2.ChatRequest, *, kill: bool = False) -> Heard:
    heard = Heard()
    named = {one.name: one for one in daemons}
    last = 0.0
    async with daemons[0].client() as client, aclosing(client.chat(asked)) as events:
        async for event in events:
            if event.HasField("routed"):
                heard.node = event.routed.node_name
            elif event.generate.HasField("delta"):
                now = time.perf_counter()
                if last:
                    heard.pause_s = max(heard.pause_s, now - last)
                heard.text += event.generate.delta.text
                heard.tokens.extend(event.generate.delta.token_ids)
                heard.logprobs.extend(event.generate.delta.logprobs)
                if kill and not last and len(heard.tokens) >= KILLED_AFTER:
                    last = now
                    named[heard.node].kill()
                elif last:
                    last = now
            elif event.generate.HasField("finished"):
                heard.prompt_tokens = event.generate.finished.usage.prompt_tokens
    assert last or not kill, "the answer was over before its node could die"
    return heard


def near_tie_nats(moved: Heard, whole: Heard) -> float:
    """How much less likely the first other token was, to the model that wrote the whole text; infinite: much."""
    pairs = zip(moved.tokens, whole.tokens, strict=False)
    at = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if at is None or at >= len(whole.logprobs):
        return math.inf
    top = {entry.token: entry.logprob for entry in whole.logprobs[at].top}
    return top.get(whole.tokens[at], math.inf) - top.get(moved.tokens[at], -math.inf)


def noise_nats(moved: Heard, whole: Heard) -> float:
    """The largest difference between what the two say of the same token after the same tokens, after the move."""
    largest = 0.0
    told = list(zip(moved.tokens, whole.tokens, moved.logprobs, whole.logprobs, strict=False))
    for one, other, said, meant in told[KILLED_AFTER:]:
        if one != other:
            break
        largest = max(largest, abs(said.logprob - meant.logprob))
    return largest
