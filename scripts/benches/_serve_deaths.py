"""Death of the node that answers, in the middle of the answer; a part of `serve`.

Node A has no model; B and C have it. The node that serves is killed (SIGKILL to the daemon; its engine goes with it)
once 32 tokens have come; the other one knows nothing of the prompt until then, because the uninterrupted run that the
text is compared with comes afterwards. Then the dead node is started again.
"""

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
WORDS = ["lamp", "river", "sea", "bread", "map", "rain", "glass", "clock", "horse", "snow", "salt", "wind", "stone"]


@dataclass
class Heard:
    """What the client saw."""

    node: str = ""
    text: str = ""
    pause_s: float = 0.0  # the longest after the kill
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0


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
    same = numerics = 0
    for number in range(DEATHS):
        await _up(daemons)
        asked = local_pb2.ChatRequest(request=request_of(number), model=model.stem)
        moved = await _heard(daemons, asked, kill=True)
        survivor = next(name for name in "bc" if name != moved.node)
        whole = await _heard(daemons, asked)
        pauses.append(moved.pause_s)
        prompts.append(moved.prompt_tokens)
        if moved.text == whole.text:
            same += 1
        elif await _by_numerics(daemons, asked, moved, survivor):
            numerics += 1
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
                if kill and not last and len(heard.tokens) >= KILLED_AFTER:
                    last = now
                    named[heard.node].kill()
                elif last:
                    last = now
            elif event.generate.HasField("finished"):
                heard.prompt_tokens = event.generate.finished.usage.prompt_tokens
    assert last or not kill, "the answer was over before its node could die"
    return heard


async def _by_numerics(daemons: list[Daemon], asked: local_pb2.ChatRequest, moved: Heard, survivor: str) -> bool:
    """Whether one node parts from its own uninterrupted text in the same way when it goes on from its own tokens."""
    for told in range(KILLED_AFTER, min(KILLED_AFTER + 16, len(moved.tokens))):
        again = local_pb2.ChatRequest()
        again.CopyFrom(asked)
        again.node = survivor
        again.request.continue_tokens.extend(moved.tokens[:told])
        again.request.max_tokens = TOKENS - told
        rest = await _heard(daemons, again)
        if rest.tokens == moved.tokens[told:]:
            return True
    return False
