"""/v1/embeddings: texts to vectors, by an agent that embeds.

Vectors of different models can not be compared. A client that names `kith` is therefore answered as long as one model
embeds in the mesh, and has to name one as soon as there are two. Batches of one answer may come from several agents,
where one of them went away; they have the same weights (questions.py).

Idea: an answer may hold millions of numbers, and writing them as text takes seconds. It is written by a thread, vector
by vector, and sent in pieces: the loop, which serves everybody else, waits for no more than one vector at a time.
"""

import array
import asyncio
import base64
import json
import math
import sys
from collections.abc import AsyncGenerator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.replica import Replica
from mesh.wire import common_pb2, engine_pb2
from node.errors import KithError
from node.http.answering import add_usage
from node.http.chat import PRIORITY
from node.http.fields import Refused, integer, text, texts
from node.http.naming import ANY_MODEL, PANEL, Named, check_abilities, live_agents, resolve
from node.route import Route
from node.router import Router

TEXTS_MAX = 2048
#: Texts a call between nodes: its answer has to fit into a message (limits.MESSAGE_BYTES_MAX), vectors of 8,192 too.
BATCH = 64
#: Numbers in one piece of an answer, in whole vectors: at most two megabytes of text.
NUMBERS_AT_ONCE = 1 << 16

Vectors = Sequence[engine_pb2.EmbedReply.Vector]


@dataclass(frozen=True)
class Embedded:
    """An answer. Invariant: its numbers are finite."""

    vectors: Vectors
    model: str
    encoding: str  # "float" or "base64"
    usage: common_pb2.Usage


async def embeddings(router: Router, replica: Replica, body: dict[str, Any], who: Hashable) -> Embedded:
    """Raises `KithError`."""
    inputs = _inputs(body.get("input"))
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Refused("encoding_format is neither float nor base64", "encoding_format")
    route, named = _route(router, replica, text(body.get("model") or ANY_MODEL, "model"), inputs)
    dimensions = integer(body, "dimensions", 0, 1, 1 << 20) if body.get("dimensions") is not None else 0
    size = max((one.agent.embedding_size for one in named.agents if one.agent.model == route.model), default=0)
    if dimensions and size and dimensions != size:
        raise _other_size(size)
    vectors: list[engine_pb2.EmbedReply.Vector] = []
    usage = common_pb2.Usage()
    for start in range(0, len(inputs), BATCH):
        part = inputs[start : start + BATCH]
        request = engine_pb2.EmbedRequest(texts=part, owner=owner_of(who), priority=PRIORITY)
        try:
            reply, route = await router.questions.embed(route, request, who)
        except KithError as error:
            if error.code == "prompt-too-long":
                raise Refused(error.message, "input", error.remedy, error.code) from None
            raise
        if len(reply.vectors) != len(request.texts):
            raise KithError("engine-failed", "the engine gave another number of vectors than of texts", "Tell us.")
        if not all(math.isfinite(sum(vector.values)) for vector in reply.vectors):
            raise KithError("engine-failed", "the engine gave vectors with numbers that are none", "Tell us.")
        vectors += reply.vectors
        add_usage(usage, reply.usage)
    if dimensions and dimensions != len(vectors[0].values):
        raise _other_size(len(vectors[0].values))
    return Embedded(vectors, route.model, encoding, usage)


async def pieces(answer: Embedded) -> AsyncGenerator[bytes, None]:
    """The answer as JSON."""
    yield b'{"object": "list", "data": ['
    at_once = max(1, NUMBERS_AT_ONCE // max(1, len(answer.vectors[0].values)))
    for start in range(0, len(answer.vectors), at_once):
        part = answer.vectors[start : start + at_once]
        yield await asyncio.to_thread(_entries, part, start, answer.encoding)
    counts = {"prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.prompt_tokens}
    yield f'], "model": {json.dumps(answer.model)}, "usage": {json.dumps(counts)}}}'.encode()


def owner_of(who: Hashable) -> str:
    """On whose behalf, for the engine's queue; what a client writes as `user` does not count, for it can write any."""
    return ":".join(map(str, who)) if isinstance(who, tuple) else str(who)


def _route(router: Router, replica: Replica, name: str, inputs: Sequence[str]) -> tuple[Route, Named]:
    named = resolve(name, live_agents(replica))
    if named.panel:
        raise Refused(f"{PANEL} does not embed", "model", "Name a model that does.", "unsupported")
    check_abilities(named, {"embed": "model"})
    try:
        return router.questions.choose_embedder(named.model, named.node, inputs), named
    except KithError as error:
        if error.code == "bad-request":
            raise Refused(error.message, "model", error.remedy) from None
        raise


def _other_size(size: int) -> Refused:
    return Refused(
        f"this model's vectors have {size:,} dimensions, and cut off they would mean nothing",
        "dimensions",
        "Leave it out.",
        "unsupported",
    )


def _inputs(value: Any) -> list[str]:
    remedy = "Send texts. In LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)."
    inputs = texts(value, "input", TEXTS_MAX, remedy)
    if not all(inputs):
        raise Refused("input holds an empty text", "input")
    return inputs


def _entries(vectors: Vectors, first: int, encoding: str) -> bytes:
    """Entries of the list, each after a comma but the very first. Runs in a thread; between two vectors others run."""
    written = []
    for index, vector in enumerate(vectors, first):
        value = _base64(vector) if encoding == "base64" else list(vector.values)
        entry = json.dumps({"object": "embedding", "index": index, "embedding": value})
        written.append(f", {entry}" if index else entry)
    return "".join(written).encode()


def _base64(vector: engine_pb2.EmbedReply.Vector) -> str:
    """32-bit floats, little-endian."""
    packed = array.array("f", vector.values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")
