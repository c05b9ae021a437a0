"""The commands about jobs: hand one in, watch it, read it, cancel it, ask why it was placed as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import output, session
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2, work_pb2
    from node.client import NodeClient

QUESTION_CHARACTERS_MAX = 8000
JOB_COLUMNS = (
    output.Column("job"),
    output.Column("state"),
    output.Column("kind", "drop"),
    output.Column("title", "crop"),
    output.Column("tasks"),
    output.Column("submitted", "crop"),
)
STORY_COLUMNS = (
    output.Column("seconds", number=True),
    output.Column("node", "crop"),
    output.Column("fact"),
    output.Column("what", "fold"),
)

submit = typer.Typer(help="Hand in a job.", no_args_is_help=True, rich_markup_mode=None)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the beginning of it.")]
MinReplicas = Annotated[
    int, typer.Option("--min-replicas", min=0, max=3, help="Fail unless that many nodes hold the job.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Same seed, same choices. 0 draws one.")]


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)
    app.add_typer(submit, name="submit")
    for command in (jobs, watch, result, cancel, explain, story):
        app.command(command.__name__)(command)


def ask(
    ctx: typer.Context,
    question: Annotated[str, typer.Argument(help="The question; - reads standard input.")],
    panel: Annotated[int, typer.Option("--panel", min=1, max=64, help="How many agents answer and vote.")] = 1,
    options: Annotated[
        str | None, typer.Option("--options", metavar="A,B,C", help="Choose among these; \\, is a comma in one.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option("--context", metavar="FILE", help="A document that the agents may read.")
    ] = None,
    seed: Seed = 0,
    min_replicas: MinReplicas = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the verdict.")] = True,
    as_json: session.Json = False,
) -> int:
    """Put a question to one agent or to a panel that votes. Ends with 8 where the panel finds no majority."""
    choices = parse_options(options) if options is not None else []
    question = sys.stdin.read() if question == "-" else question
    if not question.strip():
        raise KithError("bad-request", "the question is empty", 'as in: kith ask "Who wrote Emma?"', ExitCode.BAD_INPUT)
    if len(question) > QUESTION_CHARACTERS_MAX:
        raise KithError(
            "bad-request",
            f"the question has {len(question):,} characters; at most {QUESTION_CHARACTERS_MAX:,} are taken",
            "put the long part into a file and name it with --context",
            ExitCode.BAD_INPUT,
        )
    from mesh.wire import work_pb2
    from node.documents import read_document

    text = read_document(context).text if context is not None else ""

    request = work_pb2.JobRequest(
        ask=work_pb2.AskRequest(question=question.strip(), panel=panel, options=choices, context=text), seed=seed
    )
    return _submit(ctx, request, b"", min_replicas, wait, as_json)


@submit.command("summarize")
def summarize(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text, Markdown, HTML or PDF; - reads standard input.")],
    sentences: Annotated[
        int, typer.Option("--sentences", min=0, max=100, help="Wanted at most. 0 goes by the document's length.")
    ] = 0,
    seed: Seed = 0,
    min_replicas: MinReplicas = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the summary.")] = True,
    as_json: session.Json = False,
) -> int:
    """Summarize a document. Every sentence is shown with the place that it comes from."""
    from mesh.wire import work_pb2
    from node.documents import read_document

    document = read_document(file)

    request = work_pb2.JobRequest(
        summarize=work_pb2.SummarizeRequest(
            title=document.title,
            media_type=document.media_type,
            sentences=sentences,
            source_name=document.source_name,
        ),
        seed=seed,
    )
    return _submit(ctx, request, document.text.encode(), min_replicas, wait, as_json)


def parse_options(text: str) -> list[str]:
    """Options from `A,B,C`; `\\,` is a comma inside one, `\\\\` a backslash. Raises `KithError` (`bad-options`)."""
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == ",":
            parts.append("")
        elif character == "\\":
            following = next(characters, "")
            parts[-1] += following if following in (",", "\\") else "\\" + following
        else:
            parts[-1] += character
    options = [part.strip() for part in parts]
    remedy = 'as in: --options "yes,no" (\\, is a comma inside an option)'

    def bad(message: str) -> KithError:
        return KithError("bad-options", message, remedy, ExitCode.BAD_INPUT)

    if any(not option for option in options):
        raise bad("one of the options is empty")
    if len(options) < 2:
        raise bad("there is only one option to choose from")
    seen: set[str] = set()
    for option in options:
        if option.casefold() in seen:
            raise bad(f"the option {option!r} is given twice")
        seen.add(option.casefold())
    return options


def _submit(
    ctx: typer.Context, request: work_pb2.JobRequest, document: bytes, min_replicas: int, wait: bool, as_json: bool
) -> int:
    accepted: local_pb2.SubmitReply | None = None

    async def work(node: NodeClient) -> local_pb2.ResultReply | None:
        nonlocal accepted
        from node.cli.progress import follow, make_view

        accepted = await node.submit(request, document, min_replicas=min_replicas)
        if not as_json:
            output.note(
                f"accepted as {accepted.job_id.hex()[:12]}, held on {accepted.replicas} of "
                f"{accepted.replicas_wanted} node{'s' if accepted.replicas_wanted != 1 else ''}"
            )
        if not wait:
            return None
        await follow(node, accepted.job_id, make_view(as_json))
        return await node.result(accepted.job_id)

    try:
        reply = session.ask_node(ctx, work)
    except KeyboardInterrupt:
        if accepted is None:
            raise KithError(
                "interrupted", "interrupted before the job was accepted", "kith jobs", ExitCode.INTERRUPTED
            ) from None
        raise _left(accepted.job_id) from None
    assert accepted is not None
    held = {"replicas": accepted.replicas, "replicas_wanted": accepted.replicas_wanted}
    if reply is None:
        job_id = accepted.job_id.hex()
        if as_json:
            output.emit({"job_id": job_id, **held})
        else:
            print(job_id[:12])
        return ExitCode.OK
    return _print_result(reply, as_json, held)


def _left(job_id: bytes) -> KithError:
    short = job_id.hex()[:12]
    return KithError(
        "interrupted",
        f"stopped watching; job {short} goes on",
        f"kith watch {short}, or kith cancel {short}",
        ExitCode.INTERRUPTED,
    )


def story(ctx: typer.Context, job: JobArgument, as_json: session.Json = False) -> None:
    """Print all that happened to a job, on all nodes, in order."""
    from node.cli import as_json as shapes

    async def work(node: NodeClient) -> local_pb2.StoryReply:
        return await node.story(await resolve(node, job))

    reply = session.ask_node(ctx, work)
    if as_json:
        output.emit(shapes.story(reply))
        return
    began = min((event.time_ms for event in reply.events), default=0)
    rows = [
        [f"+{(event.time_ms - began) / 1000:.2f}", event.node_name or event.node_id[:12], event.kind, event.text]
        for event in reply.events
    ]
    output.table(STORY_COLUMNS, rows)


def _print_result(reply: local_pb2.ResultReply, as_json: bool, more: dict[str, Any] | None = None) -> int:
    from node.cli import as_json as shapes
    from node.cli.progress import check_ended_well
    from node.cli.verdict import print_result, verdict_code

    if not as_json:
        return print_result(reply)
    check_ended_well(reply.job)
    output.emit({**shapes.result(reply), **(more or {})})
    return verdict_code(reply)


async def resolve(node: NodeClient, text: str) -> bytes:
    """The id of the one job whose id starts with `text`. Raises `KithError` (`job-unknown`, `job-ambiguous`)."""
    prefix = text.strip().lower()
    unknown = KithError("job-unknown", f"there is no job {text!r}", "kith jobs lists them", ExitCode.NOT_FOUND)
    if not prefix or len(prefix) > 64 or any(c not in "0123456789abcdef" for c in prefix):
        raise unknown
    if len(prefix) == 64:
        return bytes.fromhex(prefix)
    found = sorted(job.job_id.hex() for job in await node.jobs() if job.job_id.hex().startswith(prefix))
    if not found:
        raise unknown
    if len(found) > 1:
        names = ", ".join(one[:12] for one in found[:5]) + (", …" if len(found) > 5 else "")
        raise KithError(
            "job-ambiguous", f"{len(found)} jobs start with {prefix}: {names}", "give more digits", ExitCode.USAGE
        )
    return bytes.fromhex(found[0])


def jobs(
    ctx: typer.Context,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    as_json: session.Json = False,
) -> None:
    """List jobs, the newest first."""
    import time

    from node.cli import as_json as shapes

    found = session.ask_node(ctx, lambda node: node.jobs(open_only=open_only))
    found.sort(key=lambda job: job.submitted_ms, reverse=True)
    if as_json:
        output.emit({"jobs": [shapes.job(job, tasks=False) for job in found]})
        return
    if not found:
        print("no jobs")
        return
    rows = [
        [
            job.job_id.hex()[:12],
            shapes.job_state(job),
            job.kind,
            output.one_line(job.title, 40),
            f"{job.tasks_done}/{job.tasks_total}" if job.tasks_total else "–",
            output.seconds(max(0.0, time.time() - job.submitted_ms / 1000)) + " ago",
        ]
        for job in found
    ]
    output.table(JOB_COLUMNS, rows)


def watch(ctx: typer.Context, job: JobArgument, as_json: session.Json = False) -> int:
    """Follow a job until it ends, then print its result."""
    job_id = b""

    async def work(node: NodeClient) -> local_pb2.ResultReply:
        nonlocal job_id
        from node.cli.progress import follow, make_view

        job_id = await resolve(node, job)
        await follow(node, job_id, make_view(as_json))
        return await node.result(job_id)

    try:
        reply = session.ask_node(ctx, work)
    except KeyboardInterrupt:
        if not job_id:
            raise
        raise _left(job_id) from None
    return _print_result(reply, as_json)


def result(
    ctx: typer.Context,
    job: JobArgument,
    alternatives: Annotated[
        bool, typer.Option("--alternatives", help="Also the answers of nodes that were cut off and finished it too.")
    ] = False,
    as_json: session.Json = False,
) -> int:
    """Print the result of a job that has ended."""
    from node.cli import as_json as shapes
    from node.cli.verdict import print_alternatives

    async def work(node: NodeClient) -> local_pb2.ResultReply:
        return await node.result(await resolve(node, job), alternatives=alternatives)

    reply = session.ask_node(ctx, work)
    code = _print_result(reply, as_json, {"alternatives": shapes.alternatives(reply)} if alternatives else None)
    if alternatives and not as_json:
        print_alternatives(reply)
    return code


def cancel(
    ctx: typer.Context,
    job: JobArgument,
    reason: Annotated[str, typer.Option("--reason", help="Shown to whoever watches the job.")] = "",
    as_json: session.Json = False,
) -> None:
    """Ask for a job to be cancelled."""

    async def work(node: NodeClient) -> tuple[bytes, str]:
        job_id = await resolve(node, job)
        return job_id, await node.cancel(job_id, reason)

    job_id, outcome = session.ask_node(ctx, work)
    short = job_id.hex()[:12]
    if as_json:
        output.emit({"job_id": job_id.hex(), "outcome": outcome})
    elif outcome == "already-ended":
        print(f"job {short} had already ended: kith result {short}")
    else:
        print(f"cancelling job {short}")


def explain(ctx: typer.Context, job: JobArgument, as_json: session.Json = False) -> None:
    """Say why each task of a job went where it went."""
    from node.cli import as_json as shapes
    from node.cli.explaining import print_explanation

    async def work(node: NodeClient) -> local_pb2.ExplainReply:
        return await node.explain(await resolve(node, job))

    reply = session.ask_node(ctx, work)
    if as_json:
        output.emit(shapes.explanation(reply))
    else:
        print_explanation(reply)
