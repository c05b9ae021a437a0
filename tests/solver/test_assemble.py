"""Same results, same bytes, whoever assembles them."""

import math

import pytest

from mesh.wire import common_pb2, work_pb2
from solver.assemble import assemble, task_label, to_bytes
from solver.decompose import plan_ask

Results = dict[tuple[int, int], work_pb2.TaskResult]


def agents(*models: str) -> dict[tuple[int, int], tuple[common_pb2.AgentRef, str, str]]:
    return {
        (0, replica): (common_pb2.AgentRef(node_id=f"{replica:032x}", agent="default"), f"node{replica}", model)
        for replica, model in enumerate(models)
    }


def panel(question: str, answers: list[str], *models: str) -> work_pb2.PanelResult:
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question=question, panel=len(answers)), seed=1)
    results = {(0, n): work_pb2.TaskResult(answer=work_pb2.AnswerText(text=a)) for n, a in enumerate(answers)}
    return assemble(request, plan_ask(b"j", request), results, agents(*models), None).panel


def closed(options: list[str], votes: list[int], *models: str) -> work_pb2.PanelResult:
    ask = work_pb2.AskRequest(question="Which?", panel=len(votes), options=options)
    request = work_pb2.JobRequest(ask=ask, seed=1)
    results: Results = {}
    for replica, vote in enumerate(votes):
        odds = [6.0 if option == vote else 1.0 for option in range(len(options))]
        scores = work_pb2.OptionScores(log_probabilities=[math.log(odd / sum(odds)) for odd in odds])
        results[0, replica] = work_pb2.TaskResult(scores=scores)
    return assemble(request, plan_ask(b"j", request), results, agents(*models), None).panel


def test_an_open_panel_groups_and_keeps_the_minority() -> None:
    result = panel(
        "What is the capital of France?", ["Paris", "The capital of France is Paris.", "Lyon"], "m1", "m2", "m1"
    )
    assert result.majority
    assert result.answer == "Paris"
    assert result.votes_for == 2
    assert [ballot.in_majority for ballot in result.ballots] == [True, True, False]
    assert result.ballots[2].answer == "Lyon"
    assert result.ballots[2].node_name == "node2"
    assert result.correlated


def test_without_a_majority_nothing_is_decided_and_all_is_shown() -> None:
    result = panel("Who?", ["Ann", "Bea", ""], "m1", "m2", "m3")
    assert not result.majority
    assert result.answer == ""
    assert result.votes_for == 1
    assert [ballot.answer for ballot in result.ballots] == ["Ann", "Bea", ""]
    assert not any(ballot.in_majority for ballot in result.ballots)
    assert not result.correlated


def test_a_closed_panel_votes_by_its_best_option() -> None:
    result = closed(["yes", "no"], [0, 1, 0], "m", "m", "m")
    assert result.answer == "yes"
    assert list(result.options) == ["yes", "no"]
    assert result.ballots[1].answer == "no"
    assert result.ballots[0].probabilities == pytest.approx([6 / 7, 1 / 7])
    assert closed(["yes", "no"], [0, 1], "m", "n").majority is False


def test_a_result_of_the_wrong_shape_is_a_ballot_for_nothing() -> None:
    ask = work_pb2.AskRequest(question="Which?", panel=1, options=["a b", "c"])
    request = work_pb2.JobRequest(ask=ask, seed=1)
    result = assemble(request, plan_ask(b"j", request), {(0, 0): work_pb2.TaskResult()}, {}, None)
    assert not result.panel.majority
    assert result.panel.ballots[0].answer == ""


def summary_job() -> tuple[work_pb2.JobRequest, work_pb2.Plan, Results]:
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(), seed=1)
    plan = work_pb2.Plan()
    plan.tasks.add(index=0).summarize_piece.heading = "Costs"
    plan.tasks.add(index=1).summarize_piece.heading = ""
    root = plan.tasks.add(index=2, depends_on=[0, 1])
    root.combine_summaries.level = 1
    sentence = work_pb2.SummarySentence(text="Three words here.", sources=[work_pb2.Span(begin=0, end=9)], support=1.0)
    results = {(n, 0): work_pb2.TaskResult(summary=work_pb2.Summary(sentences=[sentence] * (n + 1))) for n in range(3)}
    return request, plan, results


def test_a_summary_is_its_root_s() -> None:
    request, plan, results = summary_job()
    result = assemble(request, plan, results, {}, "Five words are in here. 山")
    assert len(result.summary.summary.sentences) == 3
    assert (result.summary.words_in, result.summary.words_out) == (6, 9)
    assert (result.summary.pieces, result.summary.levels) == (2, 1)
    assert to_bytes(result) == to_bytes(
        assemble(request, plan, dict(reversed(results.items())), {}, "Five words are in here. 山")
    )


def test_tasks_have_names() -> None:
    _, plan, _ = summary_job()
    assert [task_label(task) for task in plan.tasks] == ["piece 1: Costs", "piece 2", "combine level 1"]
    request = work_pb2.JobRequest(ask=work_pb2.AskRequest(question="Q", panel=2), seed=1)
    tasks = plan_ask(b"j", request).tasks
    assert [task_label(task) for task in tasks] == ["answer #1", "answer #2"]
    assert task_label(work_pb2.Task(index=4)) == "task 5"
