"""From an accepted request to its plan: the shell around solver/decompose.py.

Why: lengths are counted in the tokens of one model, so planning needs an engine; the plan itself is a
pure function of request, document and those counts.
"""

import asyncio
from collections.abc import Sequence

from mesh.wire import work_pb2
from node import prompts
from node.counting import COUNT_TIMEOUT_S, Counter
from node.errors import ExitCode, KithError
from solver.decompose import ANSWER_TOKENS, TooLarge, check_options, plan_ask, plan_summary, validate_plan
from solver.text import MARKDOWN, outline

#: Texts in one request to the engine.
COUNT_BATCH = 256


async def make_plan(
    job_id: bytes, request: work_pb2.JobRequest, document: str | None, engine: Counter
) -> work_pb2.Plan:
    """The checked plan of a job.

    Args:
        document: the text that a summary is about; None for a question.

    Raises:
        KithError: bad-document, bad-request, bad-options, prompt-too-long, engine-not-ready.
    """
    loaded = engine.loaded
    if loaded is None:
        raise KithError(
            "engine-not-ready", "the model of this node is not loaded yet", "Try again soon.", ExitCode.UNAVAILABLE
        )
    match request.WhichOneof("kind"):
        case "summarize":
            plan = await _summary(job_id, request, document, engine, loaded.context_tokens)
        case "ask":
            plan = await _ask(job_id, request, engine, loaded.context_tokens)
        case _:
            raise KithError("bad-request", "the request asks for nothing", "Send summarize or ask.", ExitCode.BAD_INPUT)
    plan.model = loaded.model
    return plan


async def _summary(
    job_id: bytes, request: work_pb2.JobRequest, document: str | None, engine: Counter, context_tokens: int
) -> work_pb2.Plan:
    if document is None:
        raise KithError("bad-document", "the document is not here", "Submit it again.", ExitCode.BAD_INPUT)
    parsed = await asyncio.to_thread(outline, document, request.summarize.media_type or MARKDOWN)
    sentences = [parsed.of(segment) for segment in parsed.sentences]
    if not sentences:
        raise KithError(
            "bad-document",
            "the document has no sentence to summarise, only headings, code or tables",
            "Give a text with sentences.",
            ExitCode.BAD_INPUT,
        )
    counts = await count_tokens(sentences, engine)
    try:
        plan = await asyncio.to_thread(plan_summary, job_id, request, parsed, counts, context_tokens)
    except TooLarge as error:
        raise KithError(
            "bad-document", f"the document is too long: {error}", "Split it and submit the parts.", ExitCode.BAD_INPUT
        ) from None
    except ValueError as error:
        raise KithError(
            "bad-request", f"no plan can be made: {error}", "Start the node with a larger --ctx.", ExitCode.BAD_INPUT
        ) from None
    await asyncio.to_thread(validate_plan, plan, parsed)
    return plan


async def _ask(job_id: bytes, request: work_pb2.JobRequest, engine: Counter, context_tokens: int) -> work_pb2.Plan:
    ask = request.ask
    try:
        check_options(ask.options)
    except ValueError as error:
        raise KithError(
            "bad-options", f"the options can not be used: {error}", "Give other --options.", ExitCode.BAD_INPUT
        ) from None
    try:
        plan = plan_ask(job_id, request)
    except ValueError as error:
        raise KithError(
            "bad-request", f"the question can not be asked: {error}", "Change it and ask again.", ExitCode.BAD_INPUT
        ) from None
    if ask.options:
        messages = prompts.choose(ask.question, ask.options, ask.context)
        after = max(await count_tokens(ask.options, engine))
    else:
        messages = prompts.answer(ask.question, ask.context)
        after = ANSWER_TOKENS
    prompt = sum(await count_tokens([message.content for message in messages], engine)) + 8 * len(messages)
    if prompt + after > context_tokens:
        raise KithError(
            "prompt-too-long",
            f"the question and its context need {prompt + after} tokens; the model takes {context_tokens}",
            "Shorten the context, or start the nodes with a larger --ctx.",
            ExitCode.BAD_INPUT,
        )
    for task in plan.tasks:
        task.prompt_tokens_estimate = prompt
    validate_plan(plan)
    return plan


async def count_tokens(texts: Sequence[str], engine: Counter) -> list[int]:
    """Tokens of each text, asked for in batches."""
    counts: list[int] = []
    for start in range(0, len(texts), COUNT_BATCH):
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                counts += await engine.count_tokens(texts[start : start + COUNT_BATCH])
        except TimeoutError:
            raise KithError(
                "engine-stalled",
                "the engine that counts tokens stands still",
                "It is tried again.",
                ExitCode.UNAVAILABLE,
            ) from None
    return counts
