"""The engine against llama-server: the same model file, threads and prompts, in turns, in one run.

llama-server runs inside a process of its own (package xllamacpp, its defaults; KITH_BENCH_FLASH=0 turns its flash
attention off, as ours is on a CPU), made in a throwaway environment; KITH_BENCH_PYTHON names one that exists. Its wheel
has kernels for AVX2. KITH_BENCH_SERVER=FILE takes this llama-server in its place, over HTTP on loopback, so one built
from the source of our library for the same CPU; docs/benchmarks.md says how. Ours is the engine's child process, as a
node runs it. Both have 16 slots.

Workloads: "shared", every prompt begins with the same 300 tokens and ends in 30 of its own; "unshared", 330 of its own;
48 tokens written, greedy. Each with 1, 4, 8 and 16 requests at a time (KITH_BENCH_LEAST and KITH_BENCH_MOST bound
this; KITH_BENCH_MOST=0 leaves llama-server out and measures the rest), twice (KITH_BENCH_TURNS) as many in all, and
fresh words in every round of KITH_BENCH_ROUNDS. Tokens a second are those written, by the clock from the first request
to the last answer. A ratio is ours by theirs, the median over rounds; above 1 we are faster. `single_ratio` is
unshared, one at a time. Beside each, for both, seconds to the first token over all its requests: `ttft_s_p50`,
`ttft_s_p95`. The `cpu_ratio`s compare tokens by CPU second of the two processes instead: with one thread they say the
same, and other work on the machine disturbs them less.

`python_share` is CPU time of a step at 8 slots outside the library, measured inside this process. `growth_mb` is how
much memory the engine's process gained over the second half of KITH_BENCH_REQUESTS small requests.

KITH_BENCH_QUANTS=q4_0,q8_0,q4_1,q4_k_m measures only that instead, at 8 requests at a time: files of these kinds, made
from the model by llama.cpp's quantiser (for speed: what is quantised twice writes worse), keys with the kind before
them. A matrix whose rows are no multiple of 256 can not be of a K kind: the quantiser takes another, and says of how
many. Of the default model most are such: scripts/random_model.py --like 230M makes a model of which none is.

KITH_BENCH_KV=1 measures only that instead: the engine with a split, a unified and an automatic KV cache, all of 8
slots, in turns, on prompts that all begin alike, that begin in 2 or 4 ways, and that are all different. Tokens a
second, and the ratios to the split one.

On one core of 2023 with the default model a round at all four levels takes some 11 minutes, three quarters of them
theirs; 5,000 requests some 6 minutes; a kind of quantisation 3 minutes a round.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.backend import Outbox, Request
from node.engine.generate_work import GenerateWork, Said
from node.engine.llama_loop import LlamaLoop
from node.engine.process import EngineProcess
from node.engine.sampling import Sampler
from node.errors import ExitCode, KithError
from node.models import ensure_default_model
from scripts.benches import cpu_s, percentile, size
from scripts.quantize import quantize

#: A llama-server to compare with in place of the package's.
SERVER = os.environ.get("KITH_BENCH_SERVER", "")
XLLAMACPP = "xllamacpp==2026.10.11549"
SLOTS = 16
CONTEXT_TOKENS = 512
SHARED_TOKENS, OWN_TOKENS, WRITTEN_TOKENS = 300, 30, 48
LEVELS = (1, 4, 8, 16)
TEXT = (
    "river lamp stone winter garden bread window letter horse cloud mountain paper silver kitchen harbour morning "
    "teacher carpet engine blanket forest candle market bridge island pocket summer thunder village whisper"
)
WORDS = TEXT.split()


def figures() -> dict[str, float]:
    model = Path(os.environ.get("KITH_BENCH_MODEL") or ensure_default_model(print))
    if size("kv", 0):
        from scripts.benches import _engine_kv  # which uses what is below

        return asyncio.run(_engine_kv.measure(model))
    quants = list(filter(None, os.environ.get("KITH_BENCH_QUANTS", "").split(",")))
    least, most, requests = (8, 8, 0) if quants else (LEVELS[0], LEVELS[-1], 5000)
    levels = [level for level in LEVELS if size("least", least) <= level <= size("most", most)]
    found = {} if quants else {"python_share": python_share(model)}
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        if not levels and not quants:
            return found | asyncio.run(_alone(model, Path(folder), size("requests", requests)))
        python = (
            sys.executable if SERVER else os.environ.get("KITH_BENCH_PYTHON") or _environment(Path(folder) / "venv")
        )
        for quant in quants or [""]:
            path = _made(model, quant, Path(folder)) if quant else model
            theirs = Theirs(python, path, size("threads", 1))
            try:
                told = asyncio.run(_measure(path, Path(folder), theirs, levels, size("requests", requests)))
            finally:
                theirs.end()
            found |= {f"{quant}_{name}" if quant else name: value for name, value in told.items()}
    return found


def _made(model: Path, quant: str, folder: Path) -> Path:
    path = folder / f"{model.stem}-{quant}.gguf"
    replaced = quantize(model, path, quant)
    others = f", {replaced} of its matrices of another kind" if replaced else ""
    print(f"\n{quant}: {path.stat().st_size / 1e6:.0f} MB{others}")
    return path


def _environment(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", XLLAMACPP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{XLLAMACPP} can not be installed: {done.stderr.strip()[-300:]}"
        raise KithError("bench-impossible", message, "It needs the package index, once.", ExitCode.UNAVAILABLE)
    return str(folder / "bin" / "python")


class Theirs:
    """llama-server in its process; blocking, one workload at a time."""

    def __init__(self, python: str, model: Path, threads: int) -> None:
        settings = {
            "model": str(model),
            "context_tokens": CONTEXT_TOKENS,
            "slots": SLOTS,
            "threads": threads,
            "flash_attention": bool(size("flash", 1)),
            "binary": SERVER,
        }
        script = Path(__file__).with_name("_llama_server.py")
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told = json.loads(self._line())
        if "failed" in told:
            self.end()
            message = f"the llama-server {SERVER or XLLAMACPP} does not start: {told['failed'][-300:]}"
            remedy = (
                "Name one that runs here by KITH_BENCH_SERVER (docs/benchmarks.md), or unset that for the package's."
            )
            raise KithError("bench-impossible", message, remedy, ExitCode.UNAVAILABLE)
        self.pid: int = told["pid"]
        print(f"llama-server: {told['ready']}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise KithError("bench-impossible", "llama-server ended", "Try again.", ExitCode.UNAVAILABLE)
        return line

    def run(self, prompts: list[str], concurrent: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        job = {"prompts": prompts, "concurrent": concurrent, "max_tokens": WRITTEN_TOKENS}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process.stdout.close()


async def _measure(model: Path, folder: Path, theirs: Theirs, levels: list[int], requests: int) -> dict[str, float]:
    async with _ours(model, folder) as ours:
        found = await _compare(ours, theirs, levels)
        return found | ({"growth_mb": await _growth_mb(ours, requests)} if requests else {})


async def _alone(model: Path, folder: Path, requests: int) -> dict[str, float]:
    """What needs nobody to compare with."""
    if not requests:
        return {}
    async with _ours(model, folder) as ours:
        return {"growth_mb": await _growth_mb(ours, requests)}


@asynccontextmanager
async def _ours(model: Path, folder: Path) -> AsyncIterator[EngineProcess]:
    config = NodeConfig(data_dir=folder, threads=size("threads", 1), slots=SLOTS, ctx=CONTEXT_TOKENS)
    ours = EngineProcess(config, model, lambda line: print(line, file=sys.stderr))
    try:
        await ours.start()
        assert ours.loaded is not None
        print(f"ours: {ours.loaded.system_info}; {ours.loaded.quantization}, {ours.loaded.threads} threads\n")
        yield ours
    finally:
        await ours.stop()


async def _compare(ours: EngineProcess, theirs: Theirs, levels: list[int]) -> dict[str, float]:
    cases = [(kind, level) for level in levels for kind in ("shared", "unshared")]
    results: dict[tuple[str, int], list[tuple[dict[str, Any], dict[str, Any]]]] = {case: [] for case in cases}
    draw = random.Random(size("seed", 1))
    await _run_ours(ours, await _prompts(ours, draw, "unshared", 2), 1)  # both are warm then
    await asyncio.to_thread(theirs.run, await _prompts(ours, draw, "unshared", 2), 1)
    for number in range(size("rounds", 5)):
        for kind, level in cases:
            prompts = await _prompts(ours, draw, kind, size("turns", 2) * level)
            mine: dict[str, Any] = {}
            other: dict[str, Any] = {}
            for who in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                pid = ours.pid if who == "ours" else theirs.pid
                assert pid is not None
                before = cpu_s(pid)
                if who == "ours":
                    mine = await _run_ours(ours, prompts, level)
                    mine["cpu_s"] = cpu_s(pid) - before
                else:
                    other = await asyncio.to_thread(theirs.run, prompts, level)
                    other["cpu_s"] = cpu_s(pid) - before
            results[kind, level].append((mine, other))
            clock = f"{_rate(mine):.1f} against {_rate(other):.1f} tokens/s"
            by_cpu = f"{_rate(mine, 'cpu_s'):.1f} against {_rate(other, 'cpu_s'):.1f} by CPU second"
            print(f"{kind} {level}: {clock}; {by_cpu}", flush=True)
    found: dict[str, float] = {}
    for (kind, level), pairs in results.items():
        name = "single" if (kind, level) == ("unshared", 1) else f"{kind}{level}"
        found[f"{name}_ratio"] = round(statistics.median(_rate(mine) / _rate(other) for mine, other in pairs), 3)
        cpu = [_rate(mine, "cpu_s") / _rate(other, "cpu_s") for mine, other in pairs]
        found[f"{name}_cpu_ratio"] = round(statistics.median(cpu), 3)
        for who, side in (("ours", 0), ("theirs", 1)):
            firsts = [first for pair in pairs for first in pair[side]["firsts"]]
            found[f"{name}_{who}_tokens_per_s"] = round(statistics.median(_rate(pair[side]) for pair in pairs), 1)
            found[f"{name}_{who}_ttft_s_p50"] = round(percentile(firsts, 50), 2)
            found[f"{name}_{who}_ttft_s_p95"] = round(percentile(firsts, 95), 2)
    return found


def _rate(run: dict[str, Any], by: str = "seconds") -> float:
    return float(run["tokens"] / run[by])


async def _prompts(engine: EngineProcess, draw: random.Random, kind: str, count: int) -> list[str]:
    if kind == "unshared":
        return [await _text(engine, draw, SHARED_TOKENS + OWN_TOKENS) for _ in range(count)]
    shared = await _text(engine, draw, SHARED_TOKENS)
    return [f"{shared} {await _text(engine, draw, OWN_TOKENS)}" for _ in range(count)]


async def _text(engine: EngineProcess, draw: random.Random, tokens: int) -> str:
    """Random words: of so many tokens, or a few less."""
    words = [draw.choice(WORDS) for _ in range(tokens)]
    while (most := (await engine.count_tokens([" ".join(words)]))[0]) > tokens:
        del words[-max(1, (most - tokens) // 3) :]
    return " ".join(words)


async def _run_ours(
    engine: EngineProcess, prompts: list[str], concurrent: int, max_tokens: int = WRITTEN_TOKENS
) -> dict[str, Any]:
    waiting = list(reversed(prompts))
    firsts: list[float] = []
    counts: list[int] = []

    async def worker() -> None:
        while waiting:
            request = engine_pb2.GenerateRequest(prompt=waiting.pop(), max_tokens=max_tokens)
            begun = time.perf_counter()
            first = 0.0
            async for event in engine.generate(request):
                if not first and event.delta.text:
                    first = time.perf_counter() - begun
            firsts.append(first or time.perf_counter() - begun)
            counts.append(event.finished.usage.completion_tokens)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrent)))
    return {"tokens": sum(counts), "seconds": time.perf_counter() - begun, "firsts": firsts}


async def _growth_mb(engine: EngineProcess, requests: int) -> float:
    draw = random.Random(2)

    async def some(count: int) -> None:
        left = count

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                prompt = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(4, 24)))
                async for _ in engine.generate(engine_pb2.GenerateRequest(prompt=prompt, max_tokens=2)):
                    pass

        await asyncio.gather(*(worker() for _ in range(SLOTS)))

    await some(requests // 2)
    before = _resident_mb(engine)
    await some(requests // 2)
    return round(_resident_mb(engine) - before, 2)


def _resident_mb(engine: EngineProcess) -> float:
    rows = Path(f"/proc/{engine.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("RssAnon:")) * 1024 / 1e6


def python_share(path: Path, slots: int = 8, steps: int = 60) -> float:
    """CPU time of decoding steps that is not spent in llama_decode, by their whole CPU time; one thread."""
    llama.start(warn=lambda _: None)
    model = llama.Model(path, 0)
    context = llama.Context(model, CONTEXT_TOKENS, slots, 1, 128 + slots, flash_attention=False)
    outbox = Outbox(lambda _: None)
    loop = LlamaLoop(context, slots, outbox.flush, Adapters(model, ()))
    inside = 0.0
    decode = context.decode

    def timed() -> int:
        nonlocal inside
        begun = time.thread_time()
        code = decode()
        inside += time.thread_time() - begun
        return code

    context.decode = timed  # type: ignore[method-assign]
    works = []
    for number in range(slots):
        generate = engine_pb2.GenerateRequest(prompt="-", max_tokens=2 * steps)
        request = Request(engine_pb2.EngineCommand(generate=generate), outbox, lambda _: None)
        prompt = [100 + number, *range(1000, 1030)]
        works.append(GenerateWork(request, prompt, model, CONTEXT_TOKENS, Sampler(generate.sampling, model), Said()))
        loop.add(works[-1])
    while not all(work.decoding for work in works):
        loop.step()
    inside, begun = 0.0, time.thread_time()
    for _ in range(steps):
        loop.step()
    total = time.thread_time() - begun
    for work in works:
        work.close()
    context.close()
    model.close()
    return round((total - inside) / total, 4)
