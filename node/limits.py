"""Limits on what others may ask of this node, each with the threat that it answers.

Idea: whoever asks for more than its part is told when to ask again, and waits alone. So there is a bucket for each
caller, never one for all: a flood by one member must cost the others nothing but the work of refusing it.

Limits of the machines stay with them: `DIALS_MAX` and `STRANGERS_PER_S` in mesh/addressbook.py, `MEMBERS_MAX`
in mesh/roster.py, `POSITIONS_MAX` in mesh/gossip.py, `FETCHES_MAX` in mesh/copies.py. Candidates from mDNS are counted
in node/discovery.py, strangers at the join door in node/joining/pace.py. The bucket that counts is mesh/rate.py.
"""

from collections.abc import Sequence

from mesh.wire import engine_pb2
from node.engine.api import AskedT
from node.errors import ExitCode, KithError

# Calls of peers

#: One huge message fills the memory. Facts come 1 MiB a push, blobs in chunks of 256 KiB.
MESSAGE_BYTES_MAX = 4 << 20
#: Headers are kept for every open call.
METADATA_BYTES_MAX = 8 << 10
#: A connection that opens streams without end holds a task and buffers for each.
STREAMS_PER_CONNECTION_MAX = 64
#: The last bound where one caller opens many connections; the caller's own part comes long before.
CALLS_MAX = 4096
#: Calls of one member that run at once. The next one is refused: it would hold memory and an engine's place.
CALLS_OF_ONE_MAX = 64
#: Links of one member at once: two for a moment, while a new one takes the place of an old one.
LINKS_OF_ONE_MAX = 8
#: Calls a second of one member, and how many at once after a pause. A call costs this node about a millisecond.
CALLS_PER_S, CALLS_BURST = 50.0, 200.0
#: Refusals a second of one member, and how many at once: refusing costs as much as a small call, and whoever has to
#: wait for the answer asks less often, because a connection carries few calls. Evenly spread, so others fit between.
REFUSALS_PER_S, REFUSALS_BURST = 200.0, 20.0
#: Whoever has too much under way is told to come again after this.
COME_AGAIN_S = 0.25
#: Calls of one member that wait for their refusal; the others are refused at once.
REFUSALS_WAITING_MAX = 1024
#: What a call that is passed on gets less than is left: so that whoever asked hears our reason, not its own clock.
DEADLINE_MARGIN_S = 0.05
#: A request that was passed on so often goes in circles.
HOPS_MAX = 4

# Links of peers

#: Messages a second on one link, and how many at once: more, and reading it waits, so that TCP slows the sender.
#: A busy link carries some dozens a second. Threat: a member that keeps the event loop of the others busy.
LINK_MESSAGES_PER_S, LINK_MESSAGES_BURST = 1000.0, 5000.0
#: A large message counts as several, one more for so many bytes: 16 MiB a second, 80 at once. Same threat: it is read
#: in the event loop, and may ask for much.
LINK_BYTES_OF_A_MESSAGE = 16 << 10
#: Bytes of stored facts that are read for one peer which lacks them, one push at a time. Threat: a peer that says again
#: and again that it has nothing keeps the store's only thread reading, and the journal waits.
PUSH_BYTES_PER_S, PUSH_BYTES_BURST = float(16 << 20), float(64 << 20)
#: New facts of one author that are taken, and their bytes: the rest of its streams is left for the next exchange, so a
#: quota delays and never skips. The burst is what a node that was away for weeks has to catch up on. Threat: a member
#: that fills every disk of the mesh before anybody can revoke it.
FACTS_PER_S, FACTS_BURST = 500.0, 50_000.0
FACT_BYTES_PER_S, FACT_BYTES_BURST = float(1 << 20), float(64 << 20)
#: Bytes of blobs that are fetched for one peer which asks this node to hold them: the next fetch waits. Same threat.
BLOB_BYTES_PER_S, BLOB_BYTES_BURST = float(16 << 20), float(256 << 20)

#: Bytes of blobs in memory for others, for one member and in all: each is read whole, and kept until it is taken. One
#: of the largest (mesh/copies.py: `BLOB_BYTES_MAX`) fits into one's part. Threat: a member that begins to fetch all and
#: takes none.
BLOB_BYTES_OF_ONE_MAX, BLOB_BYTES_OUT_MAX = 64 << 20, 256 << 20
#: Bytes of blobs that are read from the disk for one member: the store has one thread, and what has to be durable waits
#: for it. Threat: a member that asks for the largest again and again, and goes away.
BLOB_READ_BYTES_PER_S, BLOB_READ_BYTES_BURST = float(64 << 20), float(512 << 20)

#: Model files that are sent at once, in all and to one member; bytes a second to one. Threat: files of many gigabytes
#: that are asked for again and again keep disk and link busy. The pace leaves room beside it on a gigabit link.
MODELS_OUT_MAX, MODELS_OF_ONE_MAX = 4, 2
MODEL_BYTES_PER_S, MODEL_BYTES_BURST = float(64 << 20), float(64 << 20)

# The engine

#: Requests of one caller that wait for the engine, and of all: an answer that comes after its asker has gone is waste.
WAITING_OF_ONE_MAX, WAITING_MAX = 16, 128
#: Tokens of one answer: a model that never ends holds its slot for the whole context.
OUTPUT_TOKENS_MAX = 8192
#: A prompt with more bytes than this for each token of the context can not fit: it is not even tokenized. The longest
#: tokens of real vocabularies (runs of blanks) are rare; text has 3 to 5 bytes a token.
PROMPT_BYTES_PER_TOKEN_MAX = 32
#: Priority of a dialogue; tasks have 0. A higher one would go before everybody else's.
PRIORITY_MAX = 1
#: Messages in one dialogue: each is an object in the template's sandbox.
MESSAGES_MAX = 1024
#: Alternatives a token with log-probabilities: each is sorted out of the whole vocabulary, and sent.
TOP_LOGPROBS_MAX = 20
#: Tokens with a bias, as OpenAI has it: each is looked up at every step.
LOGIT_BIAS_MAX = 1024
#: Characters of a grammar, of a JSON schema: reading one takes time in the engine's process.
GRAMMAR_CHARACTERS_MAX = 64 << 10
#: Characters of the descriptions of tools: they become part of the prompt, through the template's sandbox.
TOOLS_CHARACTERS_MAX = 256 << 10
#: Characters of the name of an owner or an adapter: the queue keeps names.
NAME_CHARACTERS_MAX = 128
#: Texts of one CountTokens or Embed.
TEXTS_MAX = 16_384

# The HTTP door

#: One request fills the memory.
BODY_BYTES_MAX = 1 << 20
#: Connections at once, and from one host: each holds a socket and buffers, before anybody knows who it is.
CONNECTIONS_MAX, CONNECTIONS_PER_HOST_MAX = 256, 64
#: Of those beyond it, so many are told, if they ask within seconds; the others are reset.
CONNECTIONS_TOLD_MAX, TOLD_WITHIN_S = 32, 5.0
#: A connection that sends its request byte by byte is closed: head and body have to be there by then.
REQUEST_WITHIN_S = 20.0
#: An answer takes no longer.
ANSWER_WITHIN_S = 600.0
#: Requests a second of one key (of one host where no key is asked for), and how many at once.
HTTP_PER_S, HTTP_BURST = 20.0, 100.0


def too_many(what: str, retry_after_s: float) -> KithError:
    """Somebody asked for more than its part."""
    after_s = max(retry_after_s, 0.1)
    remedy = f"Ask again in {after_s:.1f} s, and less often."
    return KithError("too-many-requests", what, remedy, ExitCode.UNAVAILABLE, after_s)


def bounded(request: engine_pb2.GenerateRequest, context_tokens: int) -> engine_pb2.GenerateRequest:
    """The request as the engine may get it, a copy. Raises `KithError` (`prompt-too-long`, `bad-request`)."""
    check_prompt(request, context_tokens)
    _check_wishes(request, context_tokens)
    capped = urgent(request)
    capped.max_tokens = min(request.max_tokens or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)
    capped.top_logprobs = min(request.top_logprobs, TOP_LOGPROBS_MAX) if request.logprobs else 0
    return capped


def urgent(request: AskedT) -> AskedT:
    """The request as urgent as it may be, a copy: its priority and its usefulness are within bounds."""
    capped = type(request)()
    capped.CopyFrom(request)
    capped.priority = max(0, min(request.priority, PRIORITY_MAX))
    capped.useful_seconds = request.useful_seconds if 0 < request.useful_seconds < ANSWER_WITHIN_S else 0.0
    return capped


def _check_wishes(request: engine_pb2.GenerateRequest, context_tokens: int) -> None:
    """Raises `KithError` for what an engine would spend its time on and then refuse."""
    # What was said has to fit in the context, with the prompt. Threat: megabytes of tokens that are fed nowhere.
    tokens_most = context_tokens or OUTPUT_TOKENS_MAX
    sizes = {
        "tokens to go on from": (len(request.continue_tokens), tokens_most),
        "tokens with a bias": (len(request.sampling.logit_bias), LOGIT_BIAS_MAX),
        "characters of grammar": (len(request.grammar), GRAMMAR_CHARACTERS_MAX),
        "characters of JSON schema": (len(request.json_schema), GRAMMAR_CHARACTERS_MAX),
        "characters of tools": (len(request.tools_json), TOOLS_CHARACTERS_MAX),
        "characters in the owner's name": (len(request.owner), NAME_CHARACTERS_MAX),
        "characters in the adapter's name": (len(request.adapter), NAME_CHARACTERS_MAX),
    }
    for what, (size, most) in sizes.items():
        if size > most:
            message = f"{size:,} {what} are more than {most:,}"
            raise KithError("bad-request", message, "Send fewer.", ExitCode.BAD_INPUT)


def check_texts(texts: Sequence[str]) -> None:
    """Raises `KithError` for more texts than one call may bring. Their size is bounded by that of a message."""
    if len(texts) > TEXTS_MAX:
        raise KithError(
            "bad-request",
            f"{len(texts):,} texts are more than {TEXTS_MAX:,}",
            "Send them in several calls.",
            ExitCode.BAD_INPUT,
        )


def check_prompt(request: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest, context_tokens: int) -> None:
    """Raises `KithError` for a prompt that can not fit, before anybody spends time on it. 0: context not known."""
    if len(request.messages) > MESSAGES_MAX:
        raise KithError(
            "bad-request",
            f"{len(request.messages):,} messages are more than {MESSAGES_MAX:,}",
            "Send fewer messages.",
            ExitCode.BAD_INPUT,
        )
    size, most = request.ByteSize(), PROMPT_BYTES_PER_TOKEN_MAX * context_tokens
    if context_tokens and size > most:
        raise KithError(
            "prompt-too-long",
            f"the prompt has {size:,} bytes; the context of {context_tokens:,} tokens holds at most {most:,}",
            "Send less text, or start the node with a larger --ctx.",
            ExitCode.BAD_INPUT,
        )
