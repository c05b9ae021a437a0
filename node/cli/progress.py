"""Following a job: who does what, how fast, what is left.

Idea: a view takes the snapshots of one job as they come. On a terminal it is a live table; elsewhere one line a
change, so that a log stays readable; with `--json` nothing. All of it goes to standard error.

The remaining time is an estimate from the tasks that ended while we watched, and it is shown only after three of them:
tasks of one job are of unequal length, and an early guess would be a made-up number.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from mesh.wire import local_pb2
from node.cli import output
from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from node.client import NodeClient

#: Live view: redraws a second, and rows of running tasks at most.
REDRAWS_PER_S = 4
ROWS_MAX = 12
#: Tasks that must have ended under our eyes before a remaining time is shown.
ETA_TASKS_MIN = 3

RUNNING = ("assigned", "running")


class View(Protocol):
    def show(self, job: local_pb2.JobSnapshot) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


class Silent:
    """For `--json`."""

    def show(self, job: local_pb2.JobSnapshot) -> None: ...
    def tick(self) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One line a change, for pipes and logs."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], tuple[str, str]] = {}
        self._leader = ""
        self._waiting = ""
        self._planned = 0

    def show(self, job: local_pb2.JobSnapshot) -> None:
        if job.tasks_total != self._planned:
            self._planned = job.tasks_total
            output.note(f"planned: {job.tasks_total} task{'s' if job.tasks_total != 1 else ''}")
        if job.leader.leader_id and job.leader.leader_id != self._leader:
            if self._leader:
                output.note(f"new leader: {node_names(job).get(job.leader.leader_id, job.leader.leader_id[:12])}")
            self._leader = job.leader.leader_id
        for task in job.tasks:
            now = (task.state, task.agent.node_id)
            before = self._states.get((task.index, task.replica), ("", ""))
            self._states[task.index, task.replica] = now
            if now != before and task.state in (*RUNNING, "done", "failed"):
                # "assigned" is followed by "running" within milliseconds: one line says both.
                if task.state == "running" and before == ("assigned", task.agent.node_id):
                    continue
                output.note(_line(task, job))
        if job.waiting_for != self._waiting:
            self._waiting = job.waiting_for
            if job.waiting_for:
                output.note(f"waiting for {output.one_line(job.waiting_for)}")

    def tick(self) -> None: ...
    def close(self) -> None: ...


class Live:
    """A bar and the running tasks, redrawn in place; gone when the job ends."""

    def __init__(self) -> None:
        from rich.live import Live as RichLive

        self._job: local_pb2.JobSnapshot | None = None
        self._began = time.monotonic()
        self._first_done: tuple[float, int] | None = None  # when we began to count, and what was done then
        self._live = RichLive(
            console=output.console(sys.stderr), auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._live.start()

    def show(self, job: local_pb2.JobSnapshot) -> None:
        self._job = job
        if self._first_done is None and job.tasks_total:
            self._first_done = (time.monotonic(), job.tasks_done)

    def tick(self) -> None:
        if self._job is not None:
            self._live.update(self._picture(self._job), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _picture(self, job: local_pb2.JobSnapshot) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        running = [task for task in job.tasks if task.state in RUNNING]
        names = node_names(job)
        leader = names.get(job.leader.leader_id, job.leader.leader_id[:12])
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f"{job.kind} ", "bold").append(output.one_line(job.title, 40))
        head.append(f"  {short_id(job)}" + (f"  leader {output.one_line(leader, 20)}" if leader else ""), "dim")

        facts = [f"{job.tasks_done} of {job.tasks_total} tasks" if job.tasks_total else "planning"]
        facts.append(output.seconds(round(time.monotonic() - self._began)))
        if speed := sum(task.progress.tokens_per_s for task in running):
            facts.append(f"{output.rate(speed)} tok/s")
        if left := self.seconds_left(job, time.monotonic()):
            facts.append(f"about {output.seconds(left)} left")
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(total=max(job.tasks_total, 1), completed=job.tasks_done, width=24), Text(" · ".join(facts))
        )
        rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for header in ("node", "task", "phase", "tokens", "tok/s"):
            rows.add_column(header, justify="right" if header in ("tokens", "tok/s") else "left", no_wrap=True)
        for task in running[:ROWS_MAX]:
            rows.add_row(*map(Text, _cells(task)))
        parts: list[RenderableType] = [head, bar]
        if running:
            parts.append(rows)
        if len(running) > ROWS_MAX:
            parts.append(Text(f"and {len(running) - ROWS_MAX} more", "dim"))
        if job.waiting_for:
            parts.append(Text(f"waiting for {output.one_line(job.waiting_for)}", "yellow"))
        if done := Counter(_name(task) for task in job.tasks if task.state == "done"):
            parts.append(Text("done: " + ", ".join(f"{name} {count}" for name, count in done.most_common(8)), "dim"))
        return Group(*parts)

    def seconds_left(self, job: local_pb2.JobSnapshot, now: float) -> float:
        """An estimate; 0 where there is no honest one."""
        if self._first_done is None:
            return 0.0
        began, before = self._first_done
        ended = job.tasks_done - before
        if ended < ETA_TASKS_MIN:
            return 0.0
        return (now - began) / ended * (job.tasks_total - job.tasks_done)


def make_view(as_json: bool) -> View:
    if as_json:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()


async def follow(node: NodeClient, job_id: bytes, view: View) -> local_pb2.JobSnapshot:
    """Show the job until it ends; its last snapshot.

    Raises:
        KithError: `job-failed`, `job-cancelled`, or `node-unreachable` where the node went away first.
    """

    async def redraw() -> None:
        while True:
            view.tick()
            await asyncio.sleep(1 / REDRAWS_PER_S)

    last: local_pb2.JobSnapshot | None = None
    ticking = asyncio.create_task(redraw())
    try:
        async for last in node.watch(job_id):
            view.show(last)
    except KithError as error:
        if error.code == "node-unreachable" and last is not None:
            raise _node_gone(node, job_id) from error
        raise
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        view.close()
    if last is None or last.state == local_pb2.JOB_STATE_OPEN:
        raise _node_gone(node, job_id)
    check_ended_well(last)
    return last


def check_ended_well(job: local_pb2.JobSnapshot) -> None:
    """Raises `KithError` (`job-failed`, `job-cancelled`) for a job that ended without a result."""
    if job.state == local_pb2.JOB_STATE_FAILED:
        reasons = "; ".join(dict.fromkeys(reason.message for reason in job.reasons)) or "no reason was given"
        remedy = next((reason.remedy for reason in job.reasons if reason.remedy), f"kith explain {short_id(job)}")
        raise KithError("job-failed", f"job {short_id(job)} failed: {reasons}", remedy)
    if job.state == local_pb2.JOB_STATE_CANCELLED:
        why = "".join(f": {reason.message}" for reason in job.reasons if reason.message)
        raise KithError("job-cancelled", f"job {short_id(job)} was cancelled{why}", "", ExitCode.CANCELLED)


def _node_gone(node: NodeClient, job_id: bytes) -> KithError:
    return KithError(
        "node-unreachable",
        f"the node went away before job {job_id.hex()[:12]} ended; the job is kept",
        f"start it again (kith --data-dir {node.data_dir} up), then: kith watch {job_id.hex()[:12]}",
        ExitCode.UNREACHABLE,
    )


def short_id(job: local_pb2.JobSnapshot) -> str:
    return job.job_id.hex()[:12]


def node_names(job: local_pb2.JobSnapshot) -> dict[str, str]:
    """Names of the nodes that work on a job, by node id."""
    return {task.agent.node_id: task.node_name for task in job.tasks if task.agent.node_id and task.node_name}


def _name(task: local_pb2.TaskSnapshot) -> str:
    return output.one_line(task.node_name or task.agent.node_id[:12] or "–", 20)


def _label(task: local_pb2.TaskSnapshot) -> str:
    return output.one_line(task.label, 32) or f"task {task.index}"


def _cells(task: local_pb2.TaskSnapshot) -> tuple[str, str, str, str, str]:
    progress = task.progress
    reading = progress.phase == "reading" and progress.prompt_tokens
    tokens = f"{progress.prompt_tokens_done}/{progress.prompt_tokens}" if reading else str(progress.output_tokens)
    phase = progress.phase or task.state
    if task.attempts > 1:
        phase += f", attempt {task.attempts}"
    return _name(task), _label(task), phase, tokens, output.rate(progress.tokens_per_s)


def _line(task: local_pb2.TaskSnapshot, job: local_pb2.JobSnapshot) -> str:
    what = f"{_label(task)} on {_name(task)}"
    if task.state == "done":
        tokens = f", {task.usage.completion_tokens} tokens" if task.usage.completion_tokens else ""
        took = f" in {output.seconds(task.seconds)}" if task.seconds else ""
        return f"done: {what}{tokens}{took}; {job.tasks_done} of {job.tasks_total}"
    attempt = f" (attempt {task.attempts})" if task.attempts > 1 else ""
    return f"{'failed' if task.state == 'failed' else 'started'}: {what}{attempt}"
