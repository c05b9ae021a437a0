"""What the mesh costs a dialogue, against the bare engine in the same run; a part of `serve`.

Through the mesh: client → node A (echo, so that it has no model of its own) → node B (the default model), by gRPC at
A's own door, and by HTTP there (`http_…`: chat completions as server-sent events). Bare: the same engine process class,
driven by this process. Both engines are loaded all the time and take turns, one generation each, on the same prompt; a
pair gives one ratio, and each way has pairs and prompts of its own, so that nobody finds a prompt read already. One
thread an engine. Tokens a second are counted from the first text to the last: without the time to first token.
`tokens_ratio` and `http_tokens_ratio` are that way by bare, 1 is no loss, and `…ttft_added_ms` is that way less bare.
Beside the medians: `_low` and `_high`, the ends of their 95 % interval by the binomial of order statistics.

HTTP tells the tokens once, at the end: those of its first text are counted by that text's part of the characters.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.wire import engine_pb2, local_pb2
from node.config import NodeConfig
from node.engine.hosted.client import HttpClient
from node.engine.process import EngineProcess
from scripts.benches import median_interval, size
from scripts.daemons import Daemon, end_all, formed, until
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


#: Ways through the mesh, and how each asks.
WAYS = {"mesh": "Write a long story about {}.", "http": "Tell me a long tale of {}."}


@dataclass
class _Way:
    """What its pairs gave; seconds, and tokens a second."""

    ratios: list[float] = field(default_factory=list)
    added_ms: list[float] = field(default_factory=list)
    bare_rates: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, there: tuple[float, float], bare: tuple[float, float]) -> None:
        self.ratios.append(there[1] / bare[1])
        self.added_ms.append(1000 * (there[0] - bare[0]))
        self.bare_rates.append(bare[1])
        self.rates.append(there[1])

    def figures(self, prefix: str = "") -> dict[str, float]:
        ratio_low, ratio_high = median_interval(self.ratios)
        added_low, added_high = median_interval(self.added_ms)
        return {
            f"{prefix}tokens_ratio": round(statistics.median(self.ratios), 4),
            f"{prefix}tokens_ratio_low": round(ratio_low, 4),
            f"{prefix}tokens_ratio_high": round(ratio_high, 4),
            f"{prefix}ttft_added_ms_p50": round(statistics.median(self.added_ms), 2),
            f"{prefix}ttft_added_ms_low": round(added_low, 2),
            f"{prefix}ttft_added_ms_high": round(added_high, 2),
        }


def _request(way: str, number: int) -> engine_pb2.GenerateRequest:
    message = engine_pb2.ChatMessage(role="user", content=WAYS[way].format(SUBJECTS[number % len(SUBJECTS)]))
    sampling = engine_pb2.Sampling(temperature=0.0)
    return engine_pb2.GenerateRequest(messages=[message], max_tokens=TOKENS, sampling=sampling)


async def measure(model: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        options = ["--listen", "127.0.0.1:0", "--no-mdns", "--threads", "1"]
        mesh = ThrowawayMesh()
        a = Daemon(Path(folder) / "a", [*options, "--engine", "echo", "--http", "127.0.0.1:0"], name="a", mesh=mesh)
        daemons = [a]
        a.start()
        config = NodeConfig(data_dir=Path(folder) / "bare", threads=1)
        bare = EngineProcess(config, model, lambda _: None)
        try:
            status = await a.ready(READY_WITHIN_S)
            at = status.addresses[0]
            seed = ["--seed", f"{at.host}:{at.port}", "--model", str(model)]
            daemons.append(Daemon(Path(folder) / "b", [*options, *seed], name="b", mesh=mesh))
            daemons[1].start()
            await daemons[1].ready(READY_WITHIN_S)
            await bare.start()
            await formed(daemons)
            http = HttpClient(f"http://{status.http_address}/v1", "", "", 1)
            try:
                await until(lambda: _is_named(http), READY_WITHIN_S, "the model of b")
                return await _pairs(a, http, bare)
            finally:
                await http.close()
        finally:
            await bare.stop()
            wrong = end_all(daemons)
            assert not wrong, wrong


async def _is_named(http: HttpClient) -> bool:
    return "b" in (await http.get("/models/kith"))["kith"]["nodes"]


async def _pairs(a: Daemon, http: HttpClient, bare: EngineProcess) -> dict[str, float]:
    ways = {way: _Way() for way in WAYS}
    for number in range(WARM_UP_PAIRS + PAIRS):
        for way, found in ways.items():
            request = _request(way, number)
            pair: dict[str, tuple[float, float]] = {}
            for side in ("bare", way) if number % 2 else (way, "bare"):
                if side == "bare":
                    pair[side] = await _timed(bare.generate(request))
                elif side == "http":
                    pair[side] = await _timed_http(http, request)
                else:
                    async with a.client() as client:
                        pair[side] = await _timed(_texts(client.chat(local_pb2.ChatRequest(request=request, node="b"))))
            if number < WARM_UP_PAIRS:
                continue
            found.add(pair[way], pair["bare"])
            said = f"ratio {found.ratios[-1]:.3f}, added {found.added_ms[-1]:.1f} ms"
            print(f"  pair {len(found.ratios)}, {way}: {said}", file=sys.stderr, flush=True)
    mesh, through_http = ways["mesh"], ways["http"]
    return {
        **mesh.figures(),
        **through_http.figures("http_"),
        "bare_tokens_per_s": round(statistics.median(mesh.bare_rates), 2),
        "mesh_tokens_per_s": round(statistics.median(mesh.rates), 2),
        "http_tokens_per_s": round(statistics.median(through_http.rates), 2),
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


async def _timed_http(http: HttpClient, request: engine_pb2.GenerateRequest) -> tuple[float, float]:
    """The same through A's HTTP door."""
    body: dict[str, Any] = {
        "model": "b/kith",
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    first = last = 0.0
    characters = first_characters = tokens = 0
    async for chunk in http.stream("/chat/completions", body, lambda _: False):  # the door always says [DONE]
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if text := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
            last = time.perf_counter()
            if not first:
                first, first_characters = last, len(text)
            characters += len(text)
    assert tokens > 0
    assert characters > first_characters, "nothing was generated"
    return first - began, tokens * (1.0 - first_characters / characters) / (last - first)
