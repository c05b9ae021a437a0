"""Tests of node/cli/jobs.py, explaining.py and verdict.py: what the commands about jobs print."""

import contextlib
import io
from pathlib import Path

import pytest

from mesh.wire import local_pb2
from node.cli.explaining import print_explanation
from node.cli.jobs import parse_options
from node.errors import ExitCode, KithError
from tests.node.cli.conftest import Kith
from tests.node.cli.local_node import ALONE, CANCELLED, FAILED, OPEN, PANEL, SPLIT, SUMMARY, LocalNode, job


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("yes,no", ["yes", "no"]),
        (" a , b ,c ", ["a", "b", "c"]),
        (r"Paris\, France,Paris\, Texas", ["Paris, France", "Paris, Texas"]),
        (r"C:\\,D:\x", ["C:\\", r"D:\x"]),
        ("茶,咖啡", ["茶", "咖啡"]),
    ],
)
def test_options(text: str, options: list[str]) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize("text", ["", "one", "a,", ",a", "a,,b", "a,b,A", "a, a ", r"a\,b"])
def test_bad_options(text: str) -> None:
    with pytest.raises(KithError) as caught:
        parse_options(text)
    assert (caught.value.code, caught.value.exit_code) == ("bad-options", ExitCode.BAD_INPUT)


def test_ask_prints_the_verdict_and_keeps_progress_off_the_output(kith: Kith, local_node: LocalNode) -> None:
    local_node.next_job = PANEL
    done = kith("ask", "Which planet?", "--panel", "3", "--options", "Jupiter,Saturn", "--seed", "7")
    assert done.code == ExitCode.OK
    request = local_node.submitted[0][0].request
    assert (request.ask.question, request.ask.panel, request.seed) == ("Which planet?", 3, 7)
    assert list(request.ask.options) == ["Jupiter", "Saturn"]
    lines = done.out.splitlines()
    assert lines[:2] == ["Jupiter", "2 of 3 votes"]
    assert "errors go together" in lines[2]
    assert "votes:    Jupiter 2, Saturn 1" in lines
    minority = lines.index("minority:")
    assert lines[minority + 1].endswith(": Saturn")
    assert "accepted as a2a2a2a2a2a2, held on 2 of 3 nodes" in done.err
    assert "waiting for a node that is free" in done.err
    assert "new leader: ben" in done.err
    assert "done: piece 0 on anna, 60 tokens in 6.5 s; 1 of 3" in done.err
    assert "\x1b" not in done.out + done.err


def test_ask_without_majority_shows_every_vote_and_ends_with_8(kith: Kith, local_node: LocalNode) -> None:
    local_node.next_job = SPLIT
    done = kith("ask", "Tea or coffee?", "--panel", "2")
    assert done.code == ExitCode.NO_MAJORITY
    assert done.out.startswith("no majority\n")
    assert "votes:    Tea 1, Coffee 1" in done.out
    assert kith("result", "b1").code == ExitCode.NO_MAJORITY
    as_json = kith("ask", "Tea or coffee?", "--json")
    assert as_json.code == ExitCode.NO_MAJORITY
    assert as_json.json["panel"]["answer"] is None
    assert len(as_json.json["panel"]["minority"]) == 2


def test_ask_one_agent_prints_its_answer_first(kith: Kith, local_node: LocalNode) -> None:
    local_node.next_job = ALONE
    done = kith("ask", "Who?")
    assert done.out.splitlines()[0] == "Ada Lovelace."
    assert "votes:" not in done.out


def test_ask_reads_its_context(kith: Kith, local_node: LocalNode, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The router is in room 4.\n", encoding="utf-8")
    kith("ask", "Where?", "--context", str(tmp_path / "notes.txt"), "--no-wait")
    assert "room 4" in local_node.submitted[0][0].request.ask.context


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ask", " "), "bad-request"),
        (("ask", "x" * 8001), "bad-request"),
        (("ask", "Which?", "--options", "a"), "bad-options"),
        (("submit", "summarize", "/nowhere/at/all.txt"), "bad-document"),
    ],
)
def test_bad_input_ends_with_5_before_anything_is_sent(
    kith: Kith, local_node: LocalNode, arguments: tuple[str, ...], code: str
) -> None:
    done = kith(*arguments, "--json")
    assert (done.code, done.json["error"]["code"]) == (ExitCode.BAD_INPUT, code)
    assert local_node.submitted == []


def test_summary_shows_the_source_of_every_sentence(kith: Kith, local_node: LocalNode, tmp_path: Path) -> None:
    document = tmp_path / "rivers.md"
    document.write_text("# Rivers\n\nThe Rhine rises in the Alps.\n莱茵河流经六个国家。\n", encoding="utf-8")
    done = kith("submit", "summarize", str(document), "--sentences", "2")
    assert done.code == ExitCode.OK
    header, sent, _ = local_node.submitted[0]
    assert "莱茵河流经六个国家。" in sent.decode()
    assert (header.request.summarize.sentences, header.request.summarize.source_name) == (2, "rivers.md")
    lines = done.out.splitlines()
    assert lines[0] == " 1. The Rhine rises in the Alps."
    assert lines[1] == "    line 3: “The Rhine rises in the Alps.”  (support 1.00, verbatim)"
    assert lines[3] == "    lines 4–5: “It ends in the North Sea. 莱茵河流经六个国家。”  (support 0.62)"
    assert "1,234 words in, 14 out; 4 pieces, 1 level" in lines
    row = next(line for line in lines if line.startswith("ben "))
    assert row.split() == ["ben", "2", "1,800", "120", "40.0", "2"]


def test_summary_as_json_carries_the_source_text(kith: Kith, local_node: LocalNode) -> None:
    value = kith("result", SUMMARY.hex(), "--json").json
    assert set(value) == {"job", "summary"}
    second = value["summary"]["sentences"][1]
    assert second["sources"][1]["text"] == "莱茵河流经六个国家。"
    assert value["job"]["state"] == "completed"


def test_no_wait_prints_the_job_alone(kith: Kith, local_node: LocalNode) -> None:
    done = kith("ask", "Who?", "--no-wait")
    assert done.out == "a1a1a1a1a1a1\n"
    assert kith("ask", "Who?", "--no-wait", "--json").json == {
        "job_id": SUMMARY.hex(),
        "replicas": 2,
        "replicas_wanted": 3,
    }


def test_too_few_copies_is_an_error_that_names_the_job(kith: Kith, local_node: LocalNode) -> None:
    done = kith("ask", "Who?", "--min-replicas", "3")
    assert done.code == ExitCode.UNAVAILABLE
    assert "a1a1a1a1a1a1 is held on 2 of 3 nodes" in done.err


def test_watch_prints_progress_then_the_result(kith: Kith, local_node: LocalNode) -> None:
    done = kith("watch", "a2a2")
    assert done.out.startswith("Jupiter\n")
    assert "planned: 3 tasks" in done.err


@pytest.mark.parametrize("command", ["watch", "result"])
def test_jobs_that_ended_badly(kith: Kith, local_node: LocalNode, command: str) -> None:
    failed = kith(command, FAILED.hex()[:4])
    assert failed.code == ExitCode.FAILED
    assert "the engine ran out of memory" in failed.err
    assert "→ use a smaller model" in failed.err
    cancelled = kith(command, CANCELLED.hex())
    assert cancelled.code == ExitCode.CANCELLED
    assert "was cancelled: the wrong file" in cancelled.err


def test_result_of_an_open_job_says_to_watch(kith: Kith, local_node: LocalNode) -> None:
    done = kith("result", OPEN.hex()[:3])
    assert done.code == ExitCode.UNAVAILABLE
    assert " watch follows it" in done.err


@pytest.mark.parametrize("text", ["9", "zz", "", "a" * 65, "9" * 64])
def test_unknown_jobs_end_with_4(kith: Kith, local_node: LocalNode, text: str) -> None:
    done = kith("explain", text)
    assert done.code == ExitCode.NOT_FOUND
    assert "→" in done.err


def test_ambiguous_job_names_the_candidates(kith: Kith, local_node: LocalNode) -> None:
    done = kith("result", "a")
    assert done.code == ExitCode.USAGE
    assert "a1a1a1a1a1a1, a2a2a2a2a2a2" in done.err
    assert kith("result", "A1").code == ExitCode.OK


def test_jobs_are_listed_newest_first(kith: Kith, local_node: LocalNode) -> None:
    lines = kith("jobs").out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["f1f1f1f1f1f1", "e1e1e1e1e1e1"]
    listed = kith("jobs", "--open", "--json").json["jobs"]
    assert [one["job_id"] for one in listed] == [OPEN.hex()]
    local_node.jobs.clear()
    assert kith("jobs").out == "no jobs\n"


def test_cancel_says_what_became_of_it(kith: Kith, local_node: LocalNode) -> None:
    assert kith("cancel", "e1").out == "cancelling job e1e1e1e1e1e1\n"
    assert "had already ended" in kith("cancel", "a1").out
    assert kith("cancel", "e1", "--json").json == {"job_id": OPEN.hex(), "outcome": "requested"}
    assert local_node.cancelled == [OPEN, SUMMARY, OPEN]


def test_explain_gives_cost_terms_runner_up_method_and_reason(kith: Kith, local_node: LocalNode) -> None:
    out = kith("explain", "a1").out
    assert "round 1 by anna, term 3" in out
    assert "16 s of work; proven to be the least" in out
    assert "greedy: the solver is still starting" in out
    assert "9.8 s of work; no bound was proven" in out
    row = next(line for line in out.splitlines() if line.startswith("piece 0"))
    assert " ".join(row.split()) == "piece 0 anna 6.2 s prefill 5.1 s + decode 1.1 s ben, 9.8 s"
    first = kith("explain", "a1", "--json").json["rounds"][0]["assignments"][0]
    assert first["terms"] == {"prefill": 5.1, "decode": 1.1}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (local_pb2.JOB_STATE_OPEN, "nothing was assigned yet: the job waits for a plan"),
        (local_pb2.JOB_STATE_FAILED, "nothing was assigned: the question is too long"),
    ],
)
def test_explain_says_why_a_job_has_no_rounds(state: local_pb2.JobState.ValueType, words: str) -> None:
    job = local_pb2.JobSnapshot(job_id=b"\xa1" * 32, kind="ask", title="Which?", state=state)
    if state == local_pb2.JOB_STATE_OPEN:
        job.waiting_for = "a plan"
    else:
        job.reasons.add(code="prompt-too-long", message="the question is too long")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_explanation(local_pb2.ExplainReply(job=job))
    assert words in out.getvalue()
    assert ("yet" in out.getvalue()) == (state == local_pb2.JOB_STATE_OPEN)


def test_superseded_result_is_marked(kith: Kith, local_node: LocalNode) -> None:
    local_node.jobs[PANEL].superseded = True
    assert "kith result a2a2a2a2a2a2 --alternatives" in kith("result", "a2").out


def test_alternatives_are_shown_after_the_answer_that_was_kept(kith: Kith, local_node: LocalNode) -> None:
    local_node.jobs[PANEL].superseded = True
    out = kith("result", "a2", "--alternatives").out
    assert out.startswith("Jupiter")
    kept, first, second = out.split("alternative ")
    assert "votes:    Jupiter 2, Saturn 1" in kept
    assert first.startswith("1, completed by ben")
    assert "Ada Lovelace." in first
    assert second.startswith("2, completed by clara")
    assert "No copy of it can be read now" in second
    shown = kith("result", "a2", "--alternatives", "--json").json
    assert shown["panel"]["answer"] == "Jupiter"
    assert [one.get("panel", {}).get("answer") for one in shown["alternatives"]] == ["Ada Lovelace.", None]
    assert "There is no other answer" in kith("result", "a1", "--alternatives").out
    assert kith("result", "a1", "--alternatives", "--json").json["alternatives"] == []
    assert "alternatives" not in kith("result", "a1", "--json").json


def test_story_tells_who_did_what_and_when(kith: Kith, local_node: LocalNode) -> None:
    done = kith("story", "a1")
    rows = [line.split() for line in done.out.splitlines()[1:]]
    assert [row[:3] for row in rows[:3]] == [
        ["+0.00", "anna", "job_submitted"],
        ["+0.04", "anna", "job_planned"],
        ["+6.54", "ben", "task_finished"],
    ]
    assert "\x1b" not in done.out
    events = kith("story", "a1", "--json").json["events"]
    assert [event["kind"] for event in events] == ["job_submitted", "job_planned", "task_finished", "job_completed"]
    assert events[2]["node_id"] == "b" * 32
    assert kith("story", "99").code == ExitCode.NOT_FOUND


def test_result_without_document_says_so(kith: Kith, local_node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    state = local_node.jobs[SUMMARY].state
    local_node.jobs[SUMMARY] = job(SUMMARY, state, "elsewhere", "Rivers", 5, 5)
    out = kith("result", "a1").out
    assert "characters 10–38" in out
    assert "No copy of the document can be read now" in out
