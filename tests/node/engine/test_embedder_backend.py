"""Models made for vectors, tiny ones of each kind, loaded for real by every engine that loads files."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh.wire import engine_pb2
from node.abilities import EMBEDDER_ABILITIES
from node.config import FILE_ENGINES
from node.engine.installed import installed
from node.engine.process import EngineProcess
from node.errors import KithError
from tests.node.engine import tiny_embedders
from tests.node.engine.engines import answer, ask, idle, running
from tests.node.engine.tiny_embedders import FIRST, LAST, MEAN, NONE, RANK
from tests.node.engine.tiny_models import WIDTH

ENGINES = [name for name in FILE_ENGINES if installed(name)]
both = pytest.mark.skipif(len(ENGINES) < 2, reason="needs both engines")
TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat"]
#: Two libraries, each with kernels of its own, 32-bit sums.
ROUNDING = 1e-3


async def vectors(engine: EngineProcess, texts: Sequence[str]) -> list[list[float]]:
    reply = await engine.embed(engine_pb2.EmbedRequest(texts=texts))
    return [list(vector.values) for vector in reply.vectors]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", MEAN), ("nomic-bert", MEAN), ("nomic-bert", FIRST), ("llama", LAST)]
)
async def test_it_embeds_and_refuses_everything_else_and_lives_on(
    tmp_path: Path, engine: str, kind: str, pooling: int
) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write(kind, path, pooling, context=2048)
    async with running(path, engine=engine, slots=2) as watched:
        loaded, calibrated = watched.engine.loaded, watched.engine.calibrated
        assert loaded is not None
        assert (tuple(loaded.abilities), loaded.embedding_size) == (EMBEDDER_ABILITIES, WIDTH)
        assert (loaded.architecture, loaded.context_tokens, loaded.slots) == (kind, 512, 2)
        assert calibrated is not None
        assert calibrated.prefill_tokens_per_s > 0
        assert calibrated.decode_tokens_per_s == 0, "nothing is written"
        before = await vectors(watched.engine, TEXTS)
        for vector in before:
            assert math.isclose(math.fsum(value * value for value in vector), 1.0, abs_tol=1e-4)
        assert apart(before[0], before[1]) > ROUNDING
        for refused in (
            answer(watched.engine, ask("the cat", 4)),
            answer(watched.engine, engine_pb2.GenerateRequest(prompt="the cat", max_tokens=4)),
            watched.engine.score(engine_pb2.ScoreRequest(prompt="the", continuations=["cat"])),
        ):
            with pytest.raises(KithError, match="makes vectors of texts; it can not") as caught:
                await refused
            assert caught.value.code == "agent-refused"
            assert caught.value.remedy
        after = await vectors(watched.engine, TEXTS)
        assert max(map(apart, before, after)) < ROUNDING
        assert await watched.engine.count_tokens(["the cat sat", "dog"]) == [3, 1]
        assert (await idle(watched.engine)).steps > 0
        assert watched.states == ["ready"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_company_does_not_change_a_vector(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("nomic-bert", path, MEAN)
    texts = [f"the {animal} sat on a {letter} mat" for animal in ("cat", "dog") for letter in "abcdefghijklmnopqrst"]
    async with running(path, engine=engine, slots=2) as watched:
        together = await vectors(watched.engine, texts)
        for i in (0, 17, 39):
            [alone] = await vectors(watched.engine, [texts[i]])
            assert apart(alone, together[i]) < ROUNDING


@pytest.mark.parametrize("engine", ENGINES)
async def test_text_that_is_longer_than_an_encoder_knows_is_refused(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("bert", path, FIRST, context=32)
    async with running(path, engine=engine, ctx=256) as watched:
        with pytest.raises(KithError):
            await vectors(watched.engine, ["cat " * 40])
        assert len(await vectors(watched.engine, ["cat " * (32 - tiny_embedders.AROUND)])) == 1


@pytest.mark.parametrize(("kind", "pooling"), [("llama", LAST), ("nomic-bert", FIRST), ("nomic-bert", MEAN)])
@both
async def test_every_engine_makes_the_same_vectors_of_a_model(tmp_path: Path, kind: str, pooling: int) -> None:
    """One that goes on with the texts of another must not pool them in another way."""
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write(kind, path, pooling)
    found = []
    for engine in ENGINES:
        async with running(path, engine=engine) as watched:
            found.append(await vectors(watched.engine, TEXTS))
    assert max(map(apart, *found)) < ROUNDING


@pytest.mark.parametrize("engine", ENGINES)
async def test_vectors_are_pooled_as_the_header_names_it(tmp_path: Path, engine: str) -> None:
    found = {}
    for pooling in (MEAN, FIRST, LAST):
        path = tmp_path / f"tiny-{pooling}.gguf"
        tiny_embedders.write("llama", path, pooling)
        async with running(path, engine=engine) as watched:
            [found[pooling]] = await vectors(watched.engine, TEXTS[:1])
    assert min(apart(found[one], found[other]) for one, other in ((MEAN, FIRST), (FIRST, LAST), (LAST, MEAN))) > 0.01


async def test_a_model_that_is_not_causal_is_pooled_by_the_mean_where_it_names_nothing(tmp_path: Path) -> None:
    found = []
    for pooling in (None, NONE, MEAN):
        path = tmp_path / f"tiny-{pooling}.gguf"
        tiny_embedders.write("llama", path, pooling, causal=False)
        async with running(path, engine="llama") as watched:
            assert watched.engine.loaded is not None
            assert tuple(watched.engine.loaded.abilities) == EMBEDDER_ABILITIES
            found.append(await vectors(watched.engine, TEXTS))
    assert max(map(apart, found[0], found[2])) < ROUNDING
    assert max(map(apart, found[1], found[2])) < ROUNDING


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_model_that_ranks_is_a_bad_model(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("bert", path, RANK)
    with pytest.raises(KithError, match="ranks texts") as caught:
        async with running(path, engine=engine):
            pass
    assert caught.value.code == "bad-model"


async def test_many_askers_all_get_their_vectors_and_one_that_goes_away_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("bert", path, MEAN)
    async with running(path, engine="llama") as watched:
        asking = [asyncio.ensure_future(vectors(watched.engine, [text] * 200)) for text in TEXTS * 4]
        asking[5].cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(answers.pop(5), asyncio.CancelledError)
        assert [len(answer) for answer in answers if isinstance(answer, list)] == [200] * 11
        assert (await idle(watched.engine)).queue_length == 0
