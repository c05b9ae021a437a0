"""What a job yielded, as people read it: a summary with its sources, a panel's verdict with every ballot."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from mesh.wire import local_pb2, work_pb2
from node.cli import output
from node.cli.progress import check_ended_well
from node.errors import ExitCode

#: Characters of a quote, and quotes shown a sentence.
QUOTE_CHARACTERS = 60
QUOTES_MAX = 3

TOTALS = (
    output.Column("node", "crop"),
    *(output.Column(n, number=True) for n in ("tasks", "tokens read", "tokens written")),
    *(output.Column(n, "drop", number=True) for n in ("tok/s", "attempts")),
)
BALLOTS = (
    output.Column("node", "crop"),
    output.Column("model", "crop"),
    output.Column("vote", "fold"),
    output.Column("probabilities", "fold"),
)


def print_result(reply: local_pb2.ResultReply) -> ExitCode:
    """Print a finished job's result; NO_MAJORITY where a panel did not agree. Raises `KithError` where it failed."""
    check_ended_well(reply.job)
    code = ExitCode.OK
    if reply.result.HasField("summary"):
        _print_summary(reply.result.summary, reply.document.decode(errors="replace"))
    elif reply.result.HasField("panel"):
        _print_panel(reply.result.panel)
        code = verdict_code(reply)
    if totals := _totals(reply.job):
        print()
        output.table(TOTALS, totals)
    if reply.job.superseded:
        short = reply.job.job_id.hex()[:12]
        print("\nNodes that were cut off from each other finished this job twice; when they met, this answer was kept.")
        print(f"The others: kith result {short} --alternatives")
    return code


def print_alternatives(reply: local_pb2.ResultReply) -> None:
    """The answers that were not kept, each with who gave it."""
    if not reply.alternatives:
        print("\nThere is no other answer.")
    for number, other in enumerate(reply.alternatives, 1):
        by = output.one_line(other.completed_by_name or other.completed_by[:12])
        print(f"\n{output.bold(f'alternative {number}')}, completed by {by}")
        if other.result.HasField("summary"):
            _print_summary(other.result.summary, reply.document.decode(errors="replace"))
        elif other.result.HasField("panel"):
            _print_panel(other.result.panel)
        else:
            print("No copy of it can be read now.")


def verdict_code(reply: local_pb2.ResultReply) -> ExitCode:
    undecided = reply.result.HasField("panel") and not reply.result.panel.majority
    return ExitCode.NO_MAJORITY if undecided else ExitCode.OK


def _print_summary(result: work_pb2.SummaryResult, text: str) -> None:
    line_starts = [0] + [i + 1 for i, c in enumerate(text) if c == "\n"]
    for number, sentence in enumerate(result.summary.sentences, 1):
        print(output.wrapped(output.one_line(sentence.text), "    ", f"{number:>2}. "))
        marks = f"support {sentence.support:.2f}" + (", verbatim" if sentence.verbatim else "")
        for index, span in enumerate(sentence.sources[:QUOTES_MAX]):
            where = (
                f"{_lines(span, line_starts)}: {_quote(span, text)}" if text else f"characters {span.begin}–{span.end}"
            )
            print(output.dim(f"    {where}" + (f"  ({marks})" if index == 0 else "")))
        if len(sentence.sources) > QUOTES_MAX:
            print(output.dim(f"    and {_count(len(sentence.sources) - QUOTES_MAX, 'more place')}"))
    print()
    print(
        f"{_count(result.words_in, 'word')} in, {result.words_out:,} out; "
        f"{_count(result.pieces, 'piece')}, {_count(result.levels, 'level')}"
    )
    if not text:
        print("No copy of the document can be read now, so its lines are not quoted.")


def _quote(span: work_pb2.Span, text: str) -> str:
    return f"“{output.one_line(text[span.begin : span.end], QUOTE_CHARACTERS)}”"


def _lines(span: work_pb2.Span, line_starts: list[int]) -> str:
    first = bisect_right(line_starts, span.begin)
    last = bisect_right(line_starts, max(span.begin, span.end - 1))
    return f"line {first}" if first == last else f"lines {first}–{last}"


def _print_panel(result: work_pb2.PanelResult) -> None:
    voters = len(result.ballots)
    if result.majority:
        print(output.bold(output.wrapped(output.clean(result.answer))))
        if voters > 1:
            print(output.dim(f"{result.votes_for} of {_count(voters, 'vote')}"))
    else:
        print(output.bold("no majority"))
        print(output.dim(f"{_count(voters, 'vote')}, and no answer has more than half"))
    if result.correlated and voters > 1:
        print(output.dim("Agents of one model voted, so their errors go together: this counts for less than it seems."))
    if voters > 1 or result.options:
        print()
        output.table(BALLOTS if result.options else BALLOTS[:3], _ballots(result))
    if voters < 2:
        return
    groups = Counter(ballot.group or ballot.answer for ballot in result.ballots)
    words = {ballot.group or ballot.answer: output.one_line(ballot.answer, 40) for ballot in reversed(result.ballots)}
    print()
    print("votes:    " + ", ".join(f"{words[group]} {count}" for group, count in groups.most_common()))
    minority = [ballot for ballot in result.ballots if not ballot.in_majority]
    if not result.majority:
        return
    print(f"minority: {'none' if not minority else ''}".rstrip())
    for ballot in minority:
        print(output.wrapped(output.one_line(ballot.answer), "  ", f"  {output.one_line(ballot.node_name)}: "))


def _ballots(result: work_pb2.PanelResult) -> list[list[str]]:
    rows = []
    for ballot in result.ballots:
        row = [ballot.node_name or ballot.agent.node_id[:12], ballot.model, output.one_line(ballot.answer, 60)]
        if result.options:
            pairs = zip(result.options, ballot.probabilities, strict=False)
            row.append(", ".join(f"{output.one_line(option, 16)} {p:.2f}" for option, p in pairs))
        rows.append(row)
    return rows


def _totals(job: local_pb2.JobSnapshot) -> list[list[str]]:
    """A row a node: what it did for the job."""
    by_node: dict[str, list[local_pb2.TaskSnapshot]] = {}
    for task in job.tasks:
        if task.state == "done":
            by_node.setdefault(task.node_name or task.agent.node_id[:12], []).append(task)
    rows = []
    for name, tasks in sorted(by_node.items()):
        read = sum(task.usage.prompt_tokens for task in tasks)
        written = sum(task.usage.completion_tokens for task in tasks)
        decode_s = sum(task.usage.decode_seconds for task in tasks)
        attempts = sum(max(task.attempts, 1) for task in tasks)
        speed = output.rate(written / decode_s if decode_s else 0.0)
        rows.append([name, str(len(tasks)), f"{read:,}", f"{written:,}", speed, str(attempts)])
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
