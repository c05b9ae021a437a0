"""From the results of a job's tasks to what the job yields, and the names of tasks.

Why: any node must be able to finish a job whose tasks are done, and all must write the same bytes.
The idea: pure functions of plan and results; a summary is its root's, a panel is counted.
Not guaranteed: protobuf's canonical form across languages: `to_bytes` is deterministic for one build of the library.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from google.protobuf.message import Message

from mesh.wire import common_pb2, work_pb2
from solver.panel import answer_group, best_option, option_group, spokesman, tally
from solver.text import count_words

#: (task index, replica)
TaskPlace = tuple[int, int]


def to_bytes(message: Message) -> bytes:
    """The bytes under which a plan or result is stored and named."""
    return message.SerializeToString(deterministic=True)


def assemble(
    request: work_pb2.JobRequest,
    plan: work_pb2.Plan,
    results: Mapping[TaskPlace, work_pb2.TaskResult],
    agents: Mapping[TaskPlace, tuple[common_pb2.AgentRef, str, str]],
    document: str | None,
) -> work_pb2.JobResult:
    """What the job yields.

    Args:
        results: of every task of the plan.
        agents: who did a task: agent, name of its node, model; what is missing stays empty.
        document: the text that was summarised.
    """
    places = [(task.index, task.replica) for task in plan.tasks]
    assert all(place in results for place in places), "a task has no result"
    if request.WhichOneof("kind") == "summarize":
        return work_pb2.JobResult(summary=_summary(plan, results[places[-1]].summary, document or ""))
    return work_pb2.JobResult(panel=_panel(request.ask, places, results, agents))


def _summary(plan: work_pb2.Plan, root: work_pb2.Summary, document: str) -> work_pb2.SummaryResult:
    return work_pb2.SummaryResult(
        summary=root,
        words_in=count_words(document),
        words_out=sum(count_words(sentence.text) for sentence in root.sentences),
        pieces=sum(task.HasField("summarize_piece") for task in plan.tasks),
        levels=max((task.combine_summaries.level for task in plan.tasks), default=0),
    )


def _panel(
    ask: work_pb2.AskRequest,
    places: Sequence[TaskPlace],
    results: Mapping[TaskPlace, work_pb2.TaskResult],
    agents: Mapping[TaskPlace, tuple[common_pb2.AgentRef, str, str]],
) -> work_pb2.PanelResult:
    panel = work_pb2.PanelResult(options=ask.options)
    for place in places:
        agent, node_name, model = agents.get(place, (common_pb2.AgentRef(), "", ""))
        ballot = panel.ballots.add(agent=agent, node_name=node_name, model=model)
        if ask.options:
            scores = results[place].scores.log_probabilities
            if len(scores) == len(ask.options):
                ballot.answer = ask.options[best_option(scores)]
                ballot.group = option_group(ballot.answer)
                ballot.probabilities.extend(math.exp(score) for score in scores)
        else:
            ballot.answer = results[place].answer.text
            ballot.group = answer_group(ballot.answer, ask.question)
    count = tally([ballot.group for ballot in panel.ballots])
    panel.majority, panel.votes_for = count.majority, count.votes_for
    if count.majority:
        panel.answer = spokesman([ballot.answer for ballot in panel.ballots if ballot.group == count.winner])
        for ballot in panel.ballots:
            ballot.in_majority = ballot.group == count.winner
    models = Counter(ballot.model for ballot in panel.ballots if ballot.model)
    panel.correlated = any(number > 1 for number in models.values())
    return panel


def task_label(task: work_pb2.Task) -> str:
    """A task's name for people."""
    match task.WhichOneof("kind"):
        case "summarize_piece":
            heading = task.summarize_piece.heading
            return f"piece {task.index + 1}: {heading}" if heading else f"piece {task.index + 1}"
        case "combine_summaries":
            return f"combine level {task.combine_summaries.level}"
        case "answer" | "choose":
            return f"answer #{task.replica + 1}"
        case _:
            return f"task {task.index + 1}"
