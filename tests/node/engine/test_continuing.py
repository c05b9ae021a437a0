"""An answer that goes on from its own tokens joins without a seam, wherever the first part ended: no character, no held
back beginning of a stop string is lost or told twice. Real model, greedy, few tokens."""

from pathlib import Path

import pytest

from mesh.wire import engine_pb2
from node.engine.process import EngineProcess
from tests.node.engine.engines import running

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPTS = {
    "characters of several tokens": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 3,
    "words": "The capital of France is Paris. The capital of Italy is",
}


async def deltas(engine: EngineProcess, request: engine_pb2.GenerateRequest) -> list[engine_pb2.GenerateEvent.Delta]:
    return [event.delta async for event in engine.generate(request) if event.HasField("delta")]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("stop", ["", "ome. The capital of Spain"])
async def test_it_goes_on_without_a_seam(model_path: Path, name: str, stop: str) -> None:
    request = engine_pb2.GenerateRequest(prompt=PROMPTS[name], max_tokens=20, want_tokens=True)
    if stop:
        request.stop.append(stop)
    async with running(model_path, ctx=256) as watched:
        whole = await deltas(watched.engine, request)
        text = "".join(delta.text for delta in whole)
        assert all(len(delta.token_ids) == delta.tokens for delta in whole)
        for cut in range(1, len(whole), max(1, len(whole) // 5)):
            rest = engine_pb2.GenerateRequest()
            rest.CopyFrom(request)
            for delta in whole[:cut]:
                rest.continue_tokens.extend(delta.token_ids)
            rest.max_tokens = 20 - len(rest.continue_tokens)
            more = await deltas(watched.engine, rest)
            told = "".join(delta.text for delta in whole[:cut])
            assert told + "".join(delta.text for delta in more) == text, f"cut after {told!r}"
