"""What a person sees of the demonstration: a list of steps that grows, and under it what happens now.

On a terminal the lower part is redrawn in place, a row a node, and gone when its step ends; elsewhere every change is
one plain line. Nothing blinks and nothing scrolls but finished steps.
"""

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mesh.wire import local_pb2
from node.cli import output

BUSY = ("assigned", "running")
MARKS = {"ok": ("✓", "green"), "gone": ("✗", "red"), "note": ("·", "dim"), "now": ("…", "cyan")}
#: Redraws a second of the lower part.
REDRAWS_PER_S = 5
#: Tasks that must have ended before a remaining time is shown.
ETA_TASKS_MIN = 3


class View:
    """Use as a context manager; `step` adds a line for good, `now` and `job` fill the lower part."""

    def __init__(self) -> None:
        self._console: Console = output.console(sys.stdout)
        self._terminal = sys.stdout.isatty()
        self._live = Live(console=self._console, transient=True, refresh_per_second=REDRAWS_PER_S)
        self._last_plain = ""
        self._told: set[tuple[int, int]] = set()

    def __enter__(self) -> "View":
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the lower part away; `step` goes on working."""
        if self._terminal:
            self._live.stop()

    def title(self, text: str, more: str) -> None:
        self._console.print(Text.assemble((text, "bold"), (f"  {more}", "dim")))
        self._console.print()

    def step(self, label: str, text: str, mark: str = "ok") -> None:
        """A finished step."""
        self._live.update(Text(""))
        self._console.print(self._line(label, text, mark))

    def now(self, label: str, text: str) -> None:
        """What happens now."""
        if self._terminal:
            self._live.update(self._line(label, text, "now"))
        elif text != self._last_plain:
            self._last_plain = text
            self._console.print(self._line(label, text, "now"))

    def job(self, job: local_pb2.JobSnapshot, names: Sequence[str], leader: str, gone: str, began: float) -> None:
        """How far a job is: a bar, and a row for each of the nodes."""
        if not self._terminal:
            self._tell(job)
            return
        rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        for column in range(5):
            rows.add_column(justify="right" if column in (3, 4) else "left", no_wrap=True)
        for name in names:
            mine = [task for task in job.tasks if task.node_name == name]
            done = [task for task in mine if task.state == "done"]
            busy = next((task for task in mine if task.state in BUSY), None)
            role = "killed" if name == gone else "leader" if name == leader else ""
            style = "red" if name == gone else "bold" if name == leader else ""
            doing = "" if name == gone else "waits"
            speed = ""
            if busy is not None and name != gone:
                doing = f"{busy.progress.phase or busy.state} {output.one_line(busy.label, 30)}"
                speed = f"{output.rate(busy.progress.tokens_per_s)} tok/s"
            rows.add_row(
                "  ", Text(f"{name:<6} {role:<6}", style), Text(doing), f"{len(done)} done", Text(speed, "dim")
            )
        facts = [f"{job.tasks_done} of {job.tasks_total} tasks" if job.tasks_total else "planning"]
        seconds = time.monotonic() - began
        facts.append(output.seconds(round(seconds)))
        if ETA_TASKS_MIN <= job.tasks_done < job.tasks_total:
            left = seconds / job.tasks_done * (job.tasks_total - job.tasks_done)
            facts.append(f"about {output.seconds(round(left))} left")
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row("    ", ProgressBar(max(job.tasks_total, 1), job.tasks_done, width=30), Text(" · ".join(facts)))
        parts: list[RenderableType] = [Text(""), bar, Text(""), rows]
        if job.waiting_for:
            parts.append(Text(f"    waiting for {output.one_line(job.waiting_for)}", "yellow"))
        self._live.update(Group(*parts))

    def _tell(self, job: local_pb2.JobSnapshot) -> None:
        for task in job.tasks:
            key = (task.index, task.replica)
            if task.state == "done" and key not in self._told:
                self._told.add(key)
                tokens = f", {task.usage.completion_tokens} tokens" if task.usage.completion_tokens else ""
                words = f"{task.label or f'task {task.index}'} on {task.node_name}{tokens}"
                self._console.print(f"      {output.one_line(words)}; {job.tasks_done} of {job.tasks_total}")

    @staticmethod
    def _line(label: str, text: str, mark: str) -> Text:
        sign, style = MARKS[mark]
        return Text.assemble(("  " + sign, style), (f" {label:<8} ", "bold"), output.one_line(text))
