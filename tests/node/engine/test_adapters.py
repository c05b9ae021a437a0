"""LoRA adapters on the real model: they change the answer, keep apart, and are refused where they do not fit."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine import llama
from node.engine.adapters import TURN_STEPS, Adapters
from node.engine.llama_loop import LlamaLoop
from node.engine.process import EngineProcess
from node.errors import KithError
from tests.node.engine.engines import Watched, answer, running
from tests.node.engine.gguf_files import GgufFile, lora, sample
from tests.node.engine.test_llama_loop import Probe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PROMPT = "The capital of Germany is Berlin. The capital of Italy is Rome. The capital of France is"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("adapters")
    given = []
    for number, name in enumerate(("one", "two")):
        path = folder / f"{name}.gguf"
        path.write_bytes(lora(number, strength=8.0).build())
        given.append(f"{name}={path}")
    async with running(model_path, slots=3, ctx=256, adapters=tuple(given)) as watched:
        yield watched


def request(adapter: str, max_tokens: int = 12) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(prompt=PROMPT, max_tokens=max_tokens, adapter=adapter)


async def test_adapters_change_what_is_said_and_only_where_they_are_asked_for(watched: Watched) -> None:
    assert watched.engine.loaded is not None
    assert list(watched.engine.loaded.adapters) == ["one", "two"]
    plain, _, _ = await answer(watched.engine, request(""))
    one, _, _ = await answer(watched.engine, request("one"))
    two, _, _ = await answer(watched.engine, request("two"))
    assert plain.startswith(" Paris")
    assert len({plain, one, two}) == 3
    assert (await answer(watched.engine, request("")))[0] == plain
    assert (await answer(watched.engine, request("one")))[0] == one


async def test_together_they_say_what_they_say_alone(watched: Watched) -> None:
    names = ["", "one", "two", "one", "", "two"]
    alone = {name: (await answer(watched.engine, request(name)))[0] for name in set(names)}
    together = await asyncio.gather(*(answer(watched.engine, request(name)) for name in names))
    assert [text for text, _, _ in together] == [alone[name] for name in names]


async def test_a_prefix_is_not_shared_between_adapters(watched: Watched) -> None:
    for name in ("", "one", "two"):
        await answer(watched.engine, request(name, 2))
    cached = {name: (await answer(watched.engine, request(name, 2)))[2] for name in ("one", "two", "")}
    assert all(count > 10 for count in cached.values())  # its own prefix each
    async with running(Path(watched.engine._load_command().path), slots=1, ctx=256) as fresh:
        assert (await answer(fresh.engine, request("", 2)))[2] == 0


async def test_nobody_starves_beside_a_long_answer(watched: Watched) -> None:
    long = asyncio.ensure_future(answer(watched.engine, request("one", 150)))
    await watched.until_slots_busy()
    assert (await answer(watched.engine, request("two", 4)))[0]
    assert (await answer(watched.engine, request("", 4)))[0]
    assert not long.done()
    await long


class Counting(Adapters):
    """Says how often the library was given another adapter."""

    changes = 0

    def _set(self, context: llama.Context, name: str) -> None:
        self.changes += 1
        super()._set(context, name)


class Timed(Probe):
    """Notes the steps in which it was given logits."""

    def __init__(self, loop: LlamaLoop, adapter: str, prompt: list[int], tokens: int) -> None:
        super().__init__(prompt, tokens)
        self.adapter = adapter
        self.steps: list[int] = []
        self._loop = loop

    def take(self, logits: "NDArray[np.float32]", context: llama.Context, batch_row: int) -> None:
        super().take(logits, context, batch_row)
        self.steps.append(self._loop.stats().steps)

    @property
    def longest_wait(self) -> int:
        return max(after - before for before, after in zip(self.steps, self.steps[1:], strict=False))


async def test_a_turn_lasts_some_steps_and_no_longer_than_a_part_of_a_prompt(model_path: Path, tmp_path: Path) -> None:
    llama.start(warn=lambda _: None)
    model = llama.Model(model_path, 0)
    given = []
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).write_bytes(lora(number).build())
        given.append(engine_pb2.Adapter(name=name, path=str(tmp_path / name)))
    adapters = Counting(model, given)
    context = llama.Context(model, 512, 4, 1, 132, flash_attention=False)
    loop = LlamaLoop(context, 4, lambda: None, adapters)
    writing = [Timed(loop, name, [5 + number, 6, 7, 8], 24) for number, name in enumerate(("", "one", "two"))]
    for work in writing:
        loop.add(work)
    while not all(work.done for work in writing):
        loop.step()
    assert adapters.changes <= 3 * 24 / TURN_STEPS + 3
    assert max(work.longest_wait for work in writing) <= 2 * TURN_STEPS + 1

    writer = Timed(loop, "one", [5, 6, 7, 8], 12)
    reader = Timed(loop, "two", [9 + number % 90 for number in range(480)], 1)
    loop.add(writer)
    loop.add(reader)
    while not (writer.done and reader.done):
        loop.step()
    assert writer.longest_wait <= 2
    context.close()
    model.close()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (sample(), "is no LoRA adapter"),
        (lora(0, rows=64, layers=1), "can not load"),
        (lora(0, layers=40), "can not load"),
    ],
)
async def test_what_does_not_fit_is_refused(tmp_path: Path, model_path: Path, file: GgufFile, reason: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(file.build())
    engine = EngineProcess(
        NodeConfig(data_dir=tmp_path, threads=1, ctx=256, slots=1, adapters=(f"odd={path}",)),
        model_path,
        lambda _: None,
    )
    with pytest.raises(KithError, match=reason) as caught:
        await engine.start()
    assert caught.value.code == "bad-adapter"
    await engine.stop()


async def test_a_file_cut_short_is_refused_before_the_library_sees_it(tmp_path: Path, model_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(lora(0).build()[:-1000])
    engine = EngineProcess(
        NodeConfig(data_dir=tmp_path, threads=1, ctx=256, slots=1, adapters=(f"a={path}",)), model_path, lambda _: None
    )
    with pytest.raises(KithError, match="cut short"):
        await engine.start()
    await engine.stop()
