"""`kith explain`: each round of allocation, what was chosen, what it was thought to cost, and what came second."""

from mesh.wire import facts_pb2, local_pb2
from node.cli import output
from node.cli.as_json import job_state
from node.cli.progress import node_names, short_id

COLUMNS = (
    output.Column("task", "crop"),
    output.Column("agent"),
    output.Column("cost", number=True),
    output.Column("made up of", "fold"),
    output.Column("runner-up"),
)


def print_explanation(reply: local_pb2.ExplainReply) -> None:
    job = reply.job
    names = node_names(job)
    for one in reply.rounds:
        names.setdefault(one.assigned.token.leader_id, one.leader_name)
    labels = {(task.index, task.replica): task.label for task in job.tasks}
    print(f"{output.bold(job.kind)} {output.one_line(job.title, 60)}  {short_id(job)}, {job_state(job)}")
    if not reply.rounds:
        why = (
            f"the job waits for {job.waiting_for}" if job.waiting_for else "; ".join(one.message for one in job.reasons)
        )
        yet = " yet" if job.state == local_pb2.JOB_STATE_OPEN else ""
        print(f"nothing was assigned{yet}" + (f": {output.one_line(why)}" if why else ""))
    for one in reply.rounds:
        assigned = one.assigned
        print()
        by = output.one_line(f"by {_name(assigned.token.leader_id, names)}, term {assigned.token.term}")
        print(f"{output.bold(f'round {assigned.round}')} {by}")
        print(f"  method    {_method(assigned)}")
        print(f"  expected  {_expected(assigned)}")
        output.table(
            COLUMNS,
            [_row(record, names, labels) for record in assigned.assignments],
        )


def _method(assigned: facts_pb2.JobAssigned) -> str:
    why = f": {assigned.method_reason}" if assigned.method_reason else ""
    return output.one_line(f"{assigned.method}{why}, solved in {output.seconds(assigned.solve_seconds)}")


def _expected(assigned: facts_pb2.JobAssigned) -> str:
    total = f"{output.seconds(assigned.objective_s)} of work"
    if assigned.bound_s <= 0:
        return f"{total}; no bound was proven"
    gap = (assigned.objective_s - assigned.bound_s) / assigned.bound_s
    if gap <= 1e-6:
        return f"{total}; proven to be the least"
    return f"{total}; at most {100 * gap:.1f} % above the least"


def _row(record: facts_pb2.AssignmentRecord, names: dict[str, str], labels: dict[tuple[int, int], str]) -> list[str]:
    label = labels.get((record.task_index, record.replica)) or f"task {record.task_index}"
    terms = " + ".join(f"{term.name} {output.seconds(term.seconds)}" for term in record.terms)
    second = "none could"
    if record.runner_up.node_id:
        second = f"{_name(record.runner_up.node_id, names)}, {output.seconds(record.runner_up_cost_s)}"
    return [
        output.one_line(label, 32),
        _name(record.agent.node_id, names),
        output.seconds(record.cost_s),
        terms or "–",
        second,
    ]


def _name(node_id: str, names: dict[str, str]) -> str:
    return output.one_line(names.get(node_id) or node_id[:12] or "–", 20)
