"""What the mesh costs a dialogue, against the bare engine in the same run; a part of `serve`.

Through the mesh: client → node A (echo, so that it has no model of its own) → node B (the default model). Bare: the
same engine process class, driven by this process. Both engines are loaded all the time and take turns, one generation
each, on the same prompt; a pair gives one ratio. One thread an engine. Tokens a second are counted from the first
text to the last, so they leave the time to first token out; `tokens_ratio` is mesh by bare, 1 is no loss. Beside the
medians: `_low` and `_high`, the ends of their 95 % interval by the binomial of order statistics.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mesh.wire import engine_pb2, local_pb2
from node.config import NodeConfig
from node.engine.process import EngineProcess
from scripts.benches import median_interval, size
from scripts.daemons import Daemon, end_all, formed
from scripts.throwaway import ThrowawayMesh

PAIRS = size("pairs", 10)
WARM_UP_PAIRS = 2
TOKENS = size("tokens", 96)
READY_WITHIN_S = 180.0
SUBJECTS = [
    "a lamp",
    "rivers",
    "the sea",
    "bread",
    "an old map",
    "rain",
    "glass",
    "a clock",
    "horses",
    "snow",
    "salt",
    "wind",
]


def _request(number: int) -> engine_pb2.GenerateRequest:
    message = engine_pb2.ChatMessage(
        role="user", content=f"Write a long story about {SUBJECTS[number % len(SUBJECTS)]}."
    )
    sampling = engine_pb2.Sampling(temperature=0.0)
    return engine_pb2.GenerateRequest(messages=[message], max_tokens=TOKENS, sampling=sampling)


async def measure(model: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        options = ["--listen", "127.0.0.1:0", "--no-mdns", "--threads", "1"]
        mesh = ThrowawayMesh()
        a = Daemon(Path(folder) / "a", [*options, "--engine", "echo"], name="a", mesh=mesh)
        daemons = [a]
        a.start()
        config = NodeConfig(data_dir=Path(folder) / "bare", threads=1)
        bare = EngineProcess(config, model, lambda _: None)
        try:
            at = (await a.ready(READY_WITHIN_S)).addresses[0]
            seed = ["--seed", f"{at.host}:{at.port}", "--model", str(model)]
            daemons.append(Daemon(Path(folder) / "b", [*options, *seed], name="b", mesh=mesh))
            daemons[1].start()
            await daemons[1].ready(READY_WITHIN_S)
            await bare.start()
            await formed(daemons)
            return await _pairs(a, bare)
        finally:
            await bare.stop()
            wrong = end_all(daemons)
            assert not wrong, wrong


async def _pairs(a: Daemon, bare: EngineProcess) -> dict[str, float]:
    ratios, added_ms, bare_rates, mesh_rates = [], [], [], []
    for number in range(WARM_UP_PAIRS + PAIRS):
        request = _request(number)
        pair: dict[str, tuple[float, float]] = {}
        for side in ("bare", "mesh") if number % 2 else ("mesh", "bare"):
            if side == "bare":
                pair[side] = await _timed(bare.generate(request))
            else:
                async with a.client() as client:
                    pair[side] = await _timed(_texts(client.chat(local_pb2.ChatRequest(request=request, node="b"))))
        if number < WARM_UP_PAIRS:
            continue
        ratios.append(pair["mesh"][1] / pair["bare"][1])
        added_ms.append(1000 * (pair["mesh"][0] - pair["bare"][0]))
        bare_rates.append(pair["bare"][1])
        mesh_rates.append(pair["mesh"][1])
        print(f"  pair {len(ratios)}: ratio {ratios[-1]:.3f}, added {added_ms[-1]:.1f} ms", file=sys.stderr, flush=True)
    ratio_low, ratio_high = median_interval(ratios)
    added_low, added_high = median_interval(added_ms)
    return {
        "tokens_ratio": round(statistics.median(ratios), 4),
        "tokens_ratio_low": round(ratio_low, 4),
        "tokens_ratio_high": round(ratio_high, 4),
        "ttft_added_ms_p50": round(statistics.median(added_ms), 2),
        "ttft_added_ms_low": round(added_low, 2),
        "ttft_added_ms_high": round(added_high, 2),
        "bare_tokens_per_s": round(statistics.median(bare_rates), 2),
        "mesh_tokens_per_s": round(statistics.median(mesh_rates), 2),
        "pairs": PAIRS,
    }


async def _texts(events: AsyncIterator[local_pb2.ChatEvent]) -> AsyncIterator[engine_pb2.GenerateEvent]:
    async for event in events:
        if event.HasField("generate"):
            yield event.generate


async def _timed(events: AsyncIterator[engine_pb2.GenerateEvent]) -> tuple[float, float]:
    """Seconds to the first text, and tokens a second after it."""
    began = time.perf_counter()
    first = last = 0.0
    tokens = first_tokens = 0
    async for event in events:
        if event.HasField("delta"):
            last = time.perf_counter()
            if not first:
                first, first_tokens = last, event.delta.tokens
            tokens += event.delta.tokens
    assert tokens > first_tokens, "nothing was generated"
    return first - began, (tokens - first_tokens) / (last - first)
