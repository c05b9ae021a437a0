"""The engine's KV cache, split, unified and automatic, on the same prompts in turns: part of scripts/bench engine.

Three engines with 8 slots of 512 tokens run at once, each idle while another is measured. Of each way in which prompts
begin, they first see 24 short requests, as they would of a load that lasts; then in each round of
KITH_BENCH_ROUNDS all three are given 8 requests at a time, KITH_BENCH_TURNS times as many in all, of 300 tokens in
common with none, a few or all of the others and 30 of their own, and write 32 tokens each. What is held of earlier
rounds stays.
"""

import random
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from node.config import NodeConfig
from node.engine.process import EngineProcess
from scripts.benches import cpu_s, size
from scripts.benches.engine import CONTEXT_TOKENS, OWN_TOKENS, SHARED_TOKENS, _run_ours, _text

SLOTS, WRITTEN_TOKENS, SEEN = 8, 32, 24
KINDS = ("split", "unified", "auto")
#: In how many ways the prompts of a workload begin; 0: each in its own.
WAYS = {"alike": 1, "groups2": 2, "groups4": 4, "different": 0}


async def measure(model: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    draw = random.Random(size("seed", 1))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kith-bench-")))
        engines = {}
        for kind in KINDS:
            threads = size("threads", 1)
            config = NodeConfig(data_dir=folder, threads=threads, slots=SLOTS, ctx=CONTEXT_TOKENS, kv_cache=kind)
            engines[kind] = EngineProcess(config, model, lambda line: print(line, file=sys.stderr))
            stack.push_async_callback(engines[kind].stop)
            await engines[kind].start()
        for workload, ways in WAYS.items():
            rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            beginnings = [await _text(engines["split"], draw, SHARED_TOKENS) for _ in range(ways)]
            prompts = await _prompts(engines["split"], draw, beginnings, SEEN)
            for kind in KINDS:
                await _run_ours(engines[kind], prompts, SLOTS, 2)
            for number in range(size("rounds", 3)):
                prompts = await _prompts(engines["split"], draw, beginnings, SLOTS * size("turns", 2))
                for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                    pid = engines[kind].pid
                    assert pid is not None
                    before = cpu_s(pid)
                    done = await _run_ours(engines[kind], prompts, SLOTS, WRITTEN_TOKENS)
                    rates[kind].append((done["tokens"] / done["seconds"], done["tokens"] / (cpu_s(pid) - before)))
                now = await engines["auto"].stats()
                told = ", ".join(f"{kind} {rates[kind][-1][0]:.1f}" for kind in KINDS)
                print(f"{workload}: {told} tokens/s; auto is {now.kv_cache} ({now.kv_cache_why})", flush=True)
            found |= _figures(workload, rates)
    return found


async def _prompts(engine: EngineProcess, draw: random.Random, beginnings: list[str], count: int) -> list[str]:
    made = []
    for number in range(count):
        begin = beginnings[number % len(beginnings)] if beginnings else await _text(engine, draw, SHARED_TOKENS)
        made.append(f"{begin} {await _text(engine, draw, OWN_TOKENS)}")
    return made


def _figures(workload: str, rates: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    found = {f"{workload}_{kind}_tokens_per_s": statistics.median(clock for clock, _ in rates[kind]) for kind in KINDS}
    for kind in KINDS[1:]:
        pairs = list(zip(rates[kind], rates["split"], strict=True))
        for name, by in (("ratio", 0), ("cpu_ratio", 1)):
            found[f"{workload}_{kind}_{name}"] = statistics.median(mine[by] / split[by] for mine, split in pairs)
    return {name: round(value, 3) for name, value in found.items()}
