"""Grammar: what holding an answer to a JSON schema costs for each token, on the default model.

The same logits are sampled twice, with the grammar and without; the difference of the thread's own time is the
grammar's. `first_ms_per_token` is the mean over answers to several prompts with a new grammar, which work out what
characters and tokens do to its states; `grammar_ms_per_token` is that of the same answers once more, as in a service
that asks for the same form again and again. `refused_percent` of the sampled tokens did not fit
and were chosen again. `compile_ms`: from the schema's text to the grammar.
"""

import json
import time

import numpy as np

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.grammar import Grammar, Matcher, Vocabulary
from node.engine.json_schema import to_gbnf
from node.engine.sampling import Sampler
from node.models import ensure_default_model

TOKENS = 96
CONTEXT_TOKENS = 512

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "author": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["title", "year", "tags", "author"],
}
PROMPTS = (
    "A book about the sea, as JSON:\n",
    "Describe a film from Italy as JSON with title, year, tags and author.\n",
    "Here is a poem:\n",
    'Records: {"title": "Home", "year": 1999, "tags": ["old"], "author": {"name": "A. B."}}\nThe next one: ',
)


def figures() -> dict[str, float]:
    llama.start(warn=lambda line: None)
    model = llama.Model(ensure_default_model(), 0)
    context = llama.Context(model, CONTEXT_TOKENS, 1, 1, 128)
    tokens = range(model.vocabulary_size)
    vocabulary = Vocabulary(
        [model.piece(token) for token in tokens], [token for token in tokens if model.is_end(token)]
    )
    begun = time.thread_time()
    grammar = Grammar(to_gbnf(json.dumps(SCHEMA)))
    compile_s = time.thread_time() - begun
    first, again = [
        [_answer(model, context, Matcher(grammar, vocabulary), prompt) for prompt in PROMPTS] for _ in range(2)
    ]
    count = sum(tokens for _, tokens, _ in first)
    return {
        "compile_ms": round(1e3 * compile_s, 3),
        "first_ms_per_token": round(1e3 * sum(seconds for seconds, _, _ in first) / count, 4),
        "grammar_ms_per_token": round(1e3 * sum(seconds for seconds, _, _ in again) / count, 4),
        "refused_percent": round(100 * sum(refused for _, _, refused in again) / count, 1),
        "tokens": count,
    }


def _answer(model: llama.Model, context: llama.Context, matcher: Matcher, prompt: str) -> tuple[float, int, int]:
    """Seconds that the grammar took, tokens, and how many of them were not the first choice."""
    with_grammar = Sampler(engine_pb2.Sampling(), model, matcher)
    without = Sampler(engine_pb2.Sampling(), model)
    context.cut(0, 0)
    feed, position, seconds, refused = model.tokenize(prompt, special=True), 0, 0.0, 0
    for number in range(TOKENS):
        context.clear_batch()
        context.add(0, position, feed, len(feed) - 1)
        assert context.decode() == 0
        position += len(feed)
        logits = np.array(context.logits()[-1])
        before = time.thread_time()
        free = without.take(logits)
        between = time.thread_time()
        token = with_grammar.take(logits)
        seconds += (time.thread_time() - between) - (between - before)
        refused += token != free
        if model.is_end(token) or with_grammar.complete:
            return seconds, number + 1, refused
        feed = [token]
    return seconds, TOKENS, refused
