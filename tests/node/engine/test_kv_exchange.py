"""A cached prefix goes from one engine process to another, and saves it the reading."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.wire import engine_pb2
from node.errors import KithError
from tests.node.engine.engines import Watched, answer, running

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PROMPT = "The capital of Germany is Berlin. The capital of Italy is Rome. " * 6 + "The capital of France is"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(model_path: Path) -> AsyncIterator[tuple[Watched, Watched]]:
    async with running(model_path, slots=3, ctx=512) as one, running(model_path, slots=1, ctx=256) as other:
        yield one, other


def request(prompt: str, max_tokens: int = 4) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(prompt=prompt, max_tokens=max_tokens, want_tokens=True)


#: What the model's tokenizer makes of PROMPT's beginning is not known here: any prefix of what is held will do.
async def exported(engine: Watched, tokens: list[int]) -> engine_pb2.ExportKvReply:
    return await engine.engine.export_kv(engine_pb2.ExportKvRequest(tokens=tokens))


@pytest.fixture(scope="module")
def tokens(model_path: Path) -> list[int]:
    from node.engine import llama

    llama.start(warn=lambda _: None)
    model = llama.Model(model_path, 0)
    found = model.tokenize(PROMPT, special=True)
    model.close()
    return found


async def test_engines_of_one_model_have_one_layout(pair: tuple[Watched, Watched]) -> None:
    layouts = [one.engine.loaded.kv_layout for one in pair if one.engine.loaded is not None]
    assert len(set(layouts)) == 1
    assert len(layouts[0]) == 64
    assert all("kv" in one.engine.loaded.abilities for one in pair if one.engine.loaded is not None)


async def test_nothing_held_is_nothing_exported(pair: tuple[Watched, Watched]) -> None:
    reply = await exported(pair[0], [5, 6, 7] * 20)
    assert (reply.tokens, reply.state) == (0, b"")


async def test_imported_prefix_is_not_read_again(pair: tuple[Watched, Watched], tokens: list[int]) -> None:
    one, other = pair
    text, _, _ = await answer(one.engine, request(PROMPT))
    reply = await exported(one, tokens)
    assert reply.tokens == len(tokens)
    await other.engine.import_kv(engine_pb2.ImportKvRequest(tokens=tokens, state=reply.state))
    again, _, cached = await answer(other.engine, request(PROMPT))
    assert cached == len(tokens) - 1
    assert again == text
    assert text.startswith(" Paris")
    back = await exported(other, tokens)
    assert back.tokens == len(tokens)


async def test_engines_with_a_unified_and_a_split_cache_exchange(
    pair: tuple[Watched, Watched], model_path: Path, tokens: list[int]
) -> None:
    split = pair[0]
    async with running(model_path, slots=3, ctx=512, kv_cache="unified") as unified:
        # Two share the cells of the beginning; only one sequence of them goes out.
        both = await asyncio.gather(*(answer(unified.engine, request(PROMPT + end)) for end in (" not", " called")))
        assert max(cached for _, _, cached in both) >= len(tokens) - 1
        reply = await exported(unified, tokens)
        assert reply.tokens == len(tokens)
        await split.engine.import_kv(engine_pb2.ImportKvRequest(tokens=tokens, state=reply.state))
        text, _, _ = await answer(split.engine, request(PROMPT))
        assert text.startswith(" Paris")
    async with running(model_path, slots=2, ctx=512, kv_cache="unified") as unified:
        reply = await exported(split, tokens)
        await unified.engine.import_kv(engine_pb2.ImportKvRequest(tokens=tokens, state=reply.state))
        assert await answer(unified.engine, request(PROMPT)) == (text, "length", len(tokens) - 1)


async def test_only_what_was_asked_for_is_exported(pair: tuple[Watched, Watched], tokens: list[int]) -> None:
    """Not what somebody else's prompt, or the answer, went on with."""
    await answer(pair[0].engine, request(PROMPT, 8))
    short = await exported(pair[0], tokens[:20])
    whole = await exported(pair[0], tokens)
    beyond = await exported(pair[0], [*tokens[:20], 1, 2, 3])
    assert (short.tokens, whole.tokens, beyond.tokens) == (20, len(tokens), 20)
    assert len(whole.state) - len(short.state) == (len(tokens) - 20) * 23_040


@pytest.mark.parametrize("change", ["state", "tokens", "short", "empty", "long"])
async def test_what_does_not_fit_is_refused(pair: tuple[Watched, Watched], tokens: list[int], change: str) -> None:
    one, other = pair
    await answer(one.engine, request(PROMPT))
    reply = await exported(one, tokens)
    wanted = engine_pb2.ImportKvRequest(tokens=tokens, state=reply.state)
    if change == "state":
        wanted.state = reply.state[:-1] + bytes([reply.state[-1] ^ 1])
    elif change == "tokens":
        wanted.tokens[3] += 1
    elif change == "short":
        wanted.state = reply.state[:-1]
    elif change == "empty":
        wanted.state = b""
    else:
        wanted.tokens.extend([1] * 1000)
    with pytest.raises(KithError) as caught:
        await other.engine.import_kv(wanted)
    assert caught.value.code == "bad-request"
    assert (await answer(other.engine, request(PROMPT)))[0].startswith(" Paris")
