"""Death of the node that answers, in the middle of the answer; a part of `serve`.

Node A has no model; B and C have it. The node that serves is killed (SIGKILL to the daemon; its engine goes with it)
once 32 tokens have come; the other one knows nothing of the prompt until then. The uninterrupted run that the text is
compared with comes afterwards, on the node that died, started again. Before each run both engines are given another
text, so that neither holds a token of the prompt: the two answers are computed alike up to the move.

Where they part nevertheless, one engine in this process, without any mesh, computes both as `_replay.py` says. An
answer counts as `continued` where the texts are `equal`, or where that engine writes both of them, token for token up
to the first that differs (`shown`): then the difference is how batches were cut. The rest is `unexplained`.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from mesh.wire import engine_pb2, local_pb2
from scripts.benches import FEW_TOKENS, percentile, size
from scripts.benches._replay import END, Replay
from scripts.daemons import Daemon, end_all, formed, until
from scripts.throwaway import ThrowawayMesh

DEATHS = size("deaths", 50)
TOKENS = 96
KILLED_AFTER = 32
CONTEXT_TOKENS = 1024
READY_WITHIN_S = 180.0
WORDS = ["lamp", "river", "sea", "bread", "map", "rain", "glass", "clock", "horse", "snow", "salt", "wind", "stone"]


@dataclass
class Heard:
    """What the client saw."""

    node: str = ""
    text: str = ""
    pause_s: float = 0.0  # the longest after the kill
    moved_after: int = 0  # tokens that had come before that pause
    tokens: list[int] = field(default_factory=list)
    ended: bool = False  # by itself, before all tokens were written
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def choices(self) -> list[int]:
        return [*self.tokens, END] if self.ended else self.tokens


def request_of(number: int) -> engine_pb2.GenerateRequest:
    """About 64 tokens with the default model's template, different for each number from the first words on."""
    first, second = WORDS[number % len(WORDS)], WORDS[(number // len(WORDS) + 1 + number) % len(WORDS)]
    # A system message of our own: the template's would be a beginning that all prompts share.
    system = engine_pb2.ChatMessage(role="system", content=f"{number + 1} stories about a {first} and a {second}.")
    text = f"Write a long story about a {first} and a {second}, "
    text += "in the order in which things happened there, with many names and places. "
    text += "Begin with the weather of that day, and tell who came first."
    message = engine_pb2.ChatMessage(role="user", content=text)
    sampling = engine_pb2.Sampling(temperature=0.0)
    return engine_pb2.GenerateRequest(
        messages=[system, message], max_tokens=TOKENS, sampling=sampling, want_tokens=True, priority=1
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
            more = [*options, "--seed", f"{at.host}:{at.port}", "--model", str(model), "--ctx", str(CONTEXT_TOKENS)]
            for name in "bc":
                daemons.append(Daemon(Path(folder) / name, more, name=name, mesh=mesh))
                daemons[-1].start()
            runs = await _deaths(daemons, model)
        finally:
            wrong = end_all(daemons)
            assert not wrong, wrong
    pauses = [moved.pause_s for moved, _ in runs]
    return {
        "pause_s_p50": round(statistics.median(pauses), 3),
        "pause_s_p95": round(percentile(pauses, 95), 3),
        "pause_s_max": round(max(pauses), 3),
        **_judged(runs, model),
        "deaths": DEATHS,
        "death_prompt_tokens": statistics.median(moved.prompt_tokens for moved, _ in runs),
    }


async def _deaths(daemons: list[Daemon], model: Path) -> list[tuple[Heard, Heard]]:
    """Of each prompt the answer that moved, and the one that nobody interrupted."""
    runs = []
    for number in range(DEATHS):
        await _up(daemons)
        await _forget(daemons, model)
        asked = local_pb2.ChatRequest(request=request_of(number), model=model.stem)
        moved = await _heard(daemons, asked, kill=True)
        await _up(daemons)
        await _forget(daemons, model)
        asked.node = moved.node
        whole = await _heard(daemons, asked)
        runs.append((moved, whole))
        said = "equal" if moved.choices == whole.choices else "they part"
        print(f"  death {number + 1}: pause {moved.pause_s:.2f} s, {said}", file=sys.stderr, flush=True)
    return runs


async def _forget(daemons: list[Daemon], model: Path) -> None:
    """Each engine has one slot: another text takes its place."""
    for one in daemons[1:]:
        request = engine_pb2.GenerateRequest(prompt="~ ~ ~", max_tokens=1)
        await _heard(daemons, local_pb2.ChatRequest(request=request, model=model.stem, node=one.name))


def _judged(runs: list[tuple[Heard, Heard]], model: Path) -> dict[str, float]:
    """Which of the answers that differ are explained by how batches were cut."""
    equal = shown = 0
    gaps, noise = [0.0], [0.0]
    replay = Replay(model, CONTEXT_TOKENS)
    try:
        for number, (moved, whole) in enumerate(runs):
            if moved.choices == whole.choices and moved.text == whole.text:
                equal += 1
                continue
            why = ""
            if max(moved.cached_tokens, whole.cached_tokens) >= FEW_TOKENS:
                why = f"{moved.cached_tokens} and {whole.cached_tokens} tokens of the prompt were held"
            elif moved.choices[: moved.moved_after] != whole.choices[: moved.moved_after]:
                why = "they part before the move"
            elif moved.choices == whole.choices:
                why = "the tokens are the same, the text is not"
            else:
                prompt = replay.prompt_tokens(request_of(number))
                found = replay.compare(prompt, whole.choices, moved.choices, moved.moved_after)
                gaps.append(found.gap_nats)
                noise.append(found.noise_nats)
                if found.first and found.second:
                    shown += 1
                    continue
                why = f"one engine does not write it: uninterrupted {found.first}, moved {found.second}"
            print(f"  death {number + 1} is unexplained: {why}", file=sys.stderr, flush=True)
    finally:
        replay.close()
    return {
        "continued": equal + shown,
        "equal": equal,
        "shown": shown,
        "unexplained": len(runs) - equal - shown,
        "divergence_nats_max": round(max(gaps), 4),
        "noise_nats_max": round(max(noise), 4),
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
    killing: asyncio.Task[None] | None = None
    async with daemons[0].client() as client, aclosing(client.chat(asked)) as events:
        async for event in events:
            if event.HasField("routed"):
                heard.node = event.routed.node_name
            elif event.generate.HasField("delta"):
                now = time.perf_counter()
                if last and now - last > heard.pause_s:
                    heard.pause_s, heard.moved_after = now - last, len(heard.tokens)
                heard.text += event.generate.delta.text
                heard.tokens.extend(event.generate.delta.token_ids)
                if kill and not last and len(heard.tokens) >= KILLED_AFTER:
                    last = now
                    killing = asyncio.create_task(asyncio.to_thread(named[heard.node].kill))
                elif last:
                    last = now
            elif event.generate.HasField("started"):
                heard.cached_tokens = event.generate.started.cached_tokens
            elif event.generate.HasField("finished"):
                heard.prompt_tokens = event.generate.finished.usage.prompt_tokens
                heard.ended = event.generate.finished.reason == "stop"
    assert (killing is not None) == kill, "the answer was over before its node could die"
    if killing is not None:
        await killing
    return heard
