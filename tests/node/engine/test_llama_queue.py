"""Scores and embeddings in the engine's queue: priority, owners, deadlines; with the real model, stepped by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.embedding import Embedder, EmbedWork
from node.engine.llama_loop import LlamaLoop
from node.engine.llama_work import Work
from node.engine.score_work import ScoreWork
from node.gguf import POOLING_MEAN
from tests.node.engine.test_llama_loop import CONTEXT_TOKENS, PREFIX, Engine, request_of

pytestmark = pytest.mark.model


def scoring(prompt: int, continuations: Sequence[int], **asked: Any) -> ScoreWork:
    """A prompt and continuations of so many tokens each."""
    request = request_of(score=engine_pb2.ScoreRequest(**asked))
    return ScoreWork(request, PREFIX[:prompt], [PREFIX[-length:] for length in continuations])


def embedding(embedder: Embedder, batches: int, **asked: Any) -> EmbedWork:
    request = request_of(embed=engine_pb2.EmbedRequest(**asked))
    return EmbedWork(request, [PREFIX[:100]] * batches, embedder)


def ended(loop: LlamaLoop, works: Mapping[str, Work | EmbedWork]) -> list[str]:
    """The works in the order in which they end."""
    order: list[str] = []
    while len(order) < len(works):
        loop.step()
        order += [name for name, work in works.items() if work.done and name not in order]
    return order


def test_a_scoring_waits_by_its_priority_its_owner_and_all_of_its_tokens(model: llama.Model) -> None:
    engine = Engine(model, slots=1)
    works = {
        "long": scoring(20, [60, 60], owner="many"),
        "short": scoring(20, [2], owner="many"),
        "one": scoring(20, [2], owner="few"),
        "two": scoring(20, [2], owner="few"),
        "dialogue": scoring(20, [2], owner="many", priority=1),
    }
    for work in works.values():
        engine.loop.add(work)
    assert ended(engine.loop, works) == ["dialogue", "long", "one", "two", "short"]
    engine.context.close()


def test_embeddings_are_fair_between_owners_and_wait_by_priority(model: llama.Model) -> None:
    engine = Engine(model, slots=1)
    embedder = Embedder(model, CONTEXT_TOKENS, 1, POOLING_MEAN)
    works = {f"many {number}": embedding(embedder, 3, owner="many") for number in range(3)}
    works |= {"few": embedding(embedder, 1, owner="few"), "dialogue": embedding(embedder, 2, owner="many", priority=1)}
    for work in works.values():
        engine.loop.add_embed(work)
    for _ in range(4):
        engine.loop.step()
    assert [name for name, work in works.items() if work.done] == ["few", "dialogue"]
    assert ended(engine.loop, works)[2:] == ["many 0", "many 1", "many 2"]
    engine.context.close()


def test_what_is_not_begun_in_time_is_too_late_and_what_was_goes_on(model: llama.Model) -> None:
    engine = Engine(model, slots=1)
    embedder = Embedder(model, CONTEXT_TOKENS, 1, POOLING_MEAN)
    begun = embedding(embedder, 3, useful_seconds=5.0)
    engine.loop.add_embed(begun)
    engine.loop.step()
    begun.queued_at -= 10.0
    score, embed = scoring(20, [2], useful_seconds=5.0), embedding(embedder, 1, useful_seconds=5.0)
    score.queued_at -= 10.0
    embed.queued_at -= 10.0
    engine.loop.add(score)
    engine.loop.add_embed(embed)
    engine.loop.step()
    assert (score.done, embed.done) == (True, True)
    assert engine.loop.stats().slots_busy == 0
    assert ended(engine.loop, {"begun": begun}) == ["begun"]
    engine.context.close()


def test_an_embedding_that_is_cancelled_while_it_waits_ends_at_once(model: llama.Model) -> None:
    engine = Engine(model, slots=1)
    embedder = Embedder(model, CONTEXT_TOKENS, 1, POOLING_MEAN)
    first, second = embedding(embedder, 3, priority=1), embedding(embedder, 1)
    for work in (first, second):
        engine.loop.add_embed(work)
    second.request.cancelled = True
    engine.loop.step()
    assert (first.done, second.done) == (False, True)
    assert engine.loop.stats().queue_length == 1
    engine.context.close()
