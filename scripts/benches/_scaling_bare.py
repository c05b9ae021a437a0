"""What the machine itself gives when several engines run side by side, without any mesh: the yardstick of `scaling`.

Engines share caches, memory and the cores' power; so n of them seldom do n times the work of one, mesh or no mesh. Each
engine is a child process as a node has it, pinned to the same cores as the node of that place; each reads and writes a
few prompts of the size of a batch job's tasks, all at the same time. The first of each is not counted.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine.process import EngineProcess

PROMPT_TOKENS, WRITTEN_TOKENS = 300, 72
TEXT = "the of and to in is that it was for on are as with his they at be this from have or by one had not but"
WORDS = TEXT.split()


async def tokens_per_s(model: Path, places: Sequence[set[int]], slots: int, tasks: int) -> float:
    """Tokens read and written a second, by all engines together; `tasks`: of each slot, at least 2."""
    own = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="kith-bench-") as folder:
        engines: list[EngineProcess] = []
        try:
            for number, cores in enumerate(places):
                data_dir = Path(folder) / str(number)
                data_dir.mkdir()
                config = NodeConfig(data_dir=data_dir, threads=len(cores), slots=slots, ctx=2048)
                engines.append(EngineProcess(config, model, lambda _: None))
                os.sched_setaffinity(0, cores)  # a child keeps it
                try:
                    await engines[-1].start()
                finally:
                    os.sched_setaffinity(0, own)
            await asyncio.gather(*(_work(one, slots, 1, 0) for one in engines))
            began = time.perf_counter()
            counts = await asyncio.gather(
                *(_work(one, slots, tasks - 1, number + 1) for number, one in enumerate(engines))
            )
            return sum(counts) / (time.perf_counter() - began)
        finally:
            await asyncio.gather(*(one.stop() for one in engines))


async def _work(engine: EngineProcess, slots: int, tasks: int, seed: int) -> int:
    draw = random.Random(seed)

    async def one_slot() -> int:
        count = 0
        for _ in range(tasks):
            prompt = " ".join(draw.choice(WORDS) for _ in range(PROMPT_TOKENS))
            request = engine_pb2.GenerateRequest(prompt=prompt, max_tokens=WRITTEN_TOKENS)
            async for event in engine.generate(request):
                usage = event.finished.usage
            count += usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        return count

    return sum(await asyncio.gather(*(one_slot() for _ in range(slots))))
