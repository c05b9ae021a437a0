"""Moving the KV of a prompt against reading it again; a part of `serve`.

Node C has no model and is asked; A and B have it. A new prompt is read by one of them (nobody holds any of it, so it is
a reading for certain) and then asked of the other, which takes the KV over mTLS: all three are made to choose the move
(`scripts/measured_node.py`), all else is the product's. Both times are to the first token at the client, through
the same one hop; A and B change places with every prompt.

The rule's choice is worked out beside it, from what it would have been told: seconds of the move by its estimate
against the tokens by the agent's measured rate. `rule_right` says whether it chooses what was quicker here. Loopback
carries bytes at no cost worth naming: `mb` lets anyone add their network's.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from mesh.wire import engine_pb2, local_pb2
from node.engine import llama
from scripts import measured_node
from scripts.benches import FEW_TOKENS, size, sizes
from scripts.daemons import Daemon, end_all, formed, until
from scripts.throwaway import ThrowawayMesh
from solver.costs import Cached

#: Prompts of each length; 0 leaves the part out.
ROUNDS = size("kv_rounds", 5)
LENGTHS = sizes("kv_tokens", (256, 1024, 4096))
READY_WITHIN_S = 180.0
TEXT = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these"
)
#: Room for the longest prompt, also as the router estimates it from its characters.
CONTEXT_TOKENS = size("kv_ctx", 6144)


async def measure(model: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        options = ["--listen", "127.0.0.1:0", "--no-mdns", "--threads", "1"]
        mesh = ThrowawayMesh()
        nodes = {}
        for name in "cab":
            nodes[name] = Daemon(Path(folder) / name, options, name=name, mesh=mesh, entry=measured_node.ENTRY)
            nodes[name].environment = {"KITH_KV_NOTES": str(Path(folder) / f"{name}.notes"), "KITH_KV_FORCE": "1"}
        asked = nodes["c"]
        asked.arguments = [*options, "--engine", "echo"]
        asked.start()
        try:
            at = (await asked.ready(READY_WITHIN_S)).addresses[0]
            for name in "ab":
                more = ["--seed", f"{at.host}:{at.port}", "--model", str(model), "--ctx", str(CONTEXT_TOKENS)]
                nodes[name].arguments = [*options, *more]
                nodes[name].start()
                await nodes[name].ready(READY_WITHIN_S)
            await formed(list(nodes.values()))

            async def known() -> bool:
                return all(info.profile.agents for info in await asked.nodes())

            await until(known, READY_WITHIN_S, "all agents are known")
            found: dict[str, float] = {}
            words = _words(model)
            for tokens in LENGTHS:
                found |= await _length(nodes, words, tokens, Path(folder))
            return found
        finally:
            wrong = end_all(list(nodes.values()))
            assert not wrong, wrong


def _words(model: Path) -> list[str]:
    """Words that are one token each, with the space before them."""
    llama.start(warn=lambda _: None)
    loaded = llama.Model(model, 0, plain_kernels=True)
    words = [word for word in sorted(set(TEXT.split())) if len(loaded.tokenize(f" {word}", special=False)) == 1]
    loaded.close()
    assert len(words) > 20, "this vocabulary has no common English words"
    return words


async def _length(nodes: dict[str, Daemon], words: list[str], tokens: int, folder: Path) -> dict[str, float]:
    read_s, move_s, brought_s, sizes_mb, right = [], [], [], [], []
    rule_move_s, rule_read_s = [], []
    failed = 0
    draw = random.Random(tokens)
    for number in range(ROUNDS):
        reader, taker = ("a", "b") if number % 2 else ("b", "a")
        prompt = "".join(f" {draw.choice(words)}" for _ in range(tokens))
        read, cached = await _first_token_s(nodes["c"], prompt, reader)
        assert cached < FEW_TOKENS, "a new prompt was held already"
        moved, cached = await _first_token_s(nodes["c"], prompt, taker)
        asked, brought = _last_note(folder / "c.notes", "rule_s"), _last_note(folder / f"{taker}.notes", "bytes")
        rate = await _reading_rate(nodes["c"], taker)
        rule = Cached(0, int(asked["tokens"]), asked["rule_s"])
        rule_move_s.append(asked["rule_s"])
        rule_read_s.append(asked["tokens"] / rate)
        read_s.append(read)
        if cached < tokens // 2:
            failed += 1
        else:
            move_s.append(moved)
            brought_s.append(brought["seconds"])
            sizes_mb.append(brought["bytes"] / 1e6)
            right.append(rule.moves(int(asked["tokens"]), rate) == (moved < read))
        print(f"  {tokens} tokens: read {read:.2f} s, moved {moved:.2f} s, {cached} held", file=sys.stderr, flush=True)
    found = {
        "read_ttft_s": statistics.median(read_s),
        "rule_read_s": statistics.median(rule_read_s),
        "rule_move_s": statistics.median(rule_move_s),
        "moves_failed": float(failed),
    }
    if move_s:
        found["move_ttft_s"] = statistics.median(move_s)
        found["read_by_move"] = found["read_ttft_s"] / found["move_ttft_s"]
        found["brought_s"] = statistics.median(brought_s)
        found["mb"] = statistics.median(sizes_mb)
        found["rule_right"] = sum(right) / len(right)
    return {f"kv{tokens}_{name}": round(value, 4) for name, value in found.items()}


async def _first_token_s(asked: Daemon, prompt: str, node: str) -> tuple[float, int]:
    """Seconds until the first text, and tokens of the prompt that were not read."""
    generate = engine_pb2.GenerateRequest(prompt=prompt, max_tokens=4, sampling=engine_pb2.Sampling(), priority=1)
    first, cached = 0.0, 0
    began = time.perf_counter()
    async with (
        asked.client() as client,
        aclosing(client.chat(local_pb2.ChatRequest(request=generate, node=node))) as events,
    ):
        async for event in events:
            if event.generate.HasField("started"):
                cached = event.generate.started.cached_tokens
            elif event.generate.HasField("delta") and not first:
                first = time.perf_counter() - began
    assert first, "nothing was said"
    return first, cached


async def _reading_rate(asked: Daemon, name: str) -> float:
    """Tokens a second, as the agent's profile says."""
    return next(info.profile.agents[0].prefill_tokens_per_s for info in await asked.nodes() if info.name == name)


def _last_note(path: Path, key: str) -> dict[str, float]:
    notes: list[dict[str, float]] = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    return next(note for note in reversed(notes) if key in note)
