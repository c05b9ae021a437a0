"""The demonstration: three nodes on this machine summarise a document, lose their leader half-way, and finish.

    scripts/demo [FILE] [--json]

Nothing is simulated: three daemons as three processes on loopback, the default model in each, mutual TLS between them
in a mesh that is made for this run, a real election, SIGKILL. All they write lies in a temporary folder, which is
removed at the end, however the end comes. With --json the last line is one JSON object.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.wire import local_pb2, work_pb2
from node.cli import output
from node.cli.as_json import STATE_OF_JOB
from node.cli.verdict import print_result
from node.documents import Document, document_from_bytes, read_document
from node.engine.installed import default_engine
from node.engine.threads import cores
from node.errors import ExitCode, KithError
from node.models import DEFAULT_NAME, ensure_default_model
from scripts.daemons import ROOT, Daemon, NotInTime, end_all, formed, until
from scripts.demo_view import View
from scripts.throwaway import ThrowawayMesh
from solver.text import count_words

NAMES = ("ash", "birch", "cedar")
QUESTION = "Which planet is the largest?"
OPTIONS = ("Mars", "Jupiter", "Venus")

READY_WITHIN_S = 180.0
FOUND_BY_MDNS_WITHIN_S = 15.0
FORMED_WITHIN_S = 60.0
FAILOVER_WITHIN_S = 60.0
JOB_WITHIN_S = 1500.0


@dataclass
class Told:
    """What `--json` prints, filled on the way."""

    discovery: str = ""
    leader_before: str = ""
    leader_after: str = ""
    failover_s: float = 0.0
    job: dict[str, Any] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)


def default_document() -> Document:
    """This project's documents, as one."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    if not texts:
        raise KithError("bad-document", "this checkout has no documents", "scripts/demo FILE", ExitCode.BAD_INPUT)
    return document_from_bytes("\n\n".join(texts).encode(), "kithmesh-documents.md")


class Demo:
    """One run. `play` does all of it; `close` ends every process and removes the folder."""

    def __init__(self, view: View, folder: Path) -> None:
        self.view = view
        self.folder = folder
        self.told = Told()
        self.daemons: list[Daemon] = []
        self.mesh = ThrowawayMesh("demo")  # apart from other nodes of this machine, other demonstrations too

    def close(self) -> list[str]:
        wrong = end_all(self.daemons)
        shutil.rmtree(self.folder, ignore_errors=True)
        return wrong

    async def play(self, document: Document, model: Path) -> tuple[local_pb2.ResultReply, local_pb2.ResultReply]:
        """The summary and the panel's verdict."""
        leader = await self._form(model)
        self.told.leader_before = leader.label
        term = (await leader.status()).term
        self.view.step("leader", f"{leader.label} was elected, term {term}")

        summary = await self._summarise(document, leader)
        await self._return(leader)
        verdict = await self._ask()
        return summary, verdict

    async def _form(self, model: Path) -> Daemon:
        self._start(model, [])
        await self._ready()
        try:
            leader = await formed(self.daemons, FOUND_BY_MDNS_WITHIN_S)
            took = time.monotonic() - self.daemons[0].started_at
            self.told.discovery = "mdns"
            self.view.step("found", f"each other by mDNS, {output.seconds(took)} after the start")
            return leader
        except NotInTime:
            self.view.step("mDNS", "no multicast here: the nodes are told each other's addresses instead", "note")
            await asyncio.to_thread(end_all, self.daemons)
        self.told.discovery = "seeds"
        shutil.rmtree(self.folder)
        self.folder.mkdir(mode=0o700)
        self.daemons = []
        self._start(model, [], only=NAMES[0])
        await self._ready(engine=False)
        address = (await self.daemons[0].status()).addresses[0]
        self._start(model, ["--seed", f"{address.host}:{address.port}"], only=NAMES[1:])
        await self._ready()
        leader = await formed(self.daemons, FORMED_WITHIN_S)
        self.view.step("found", "each other by the addresses given")
        return leader

    def _start(self, model: Path, more: list[str], only: str | tuple[str, ...] = NAMES) -> None:
        threads = max(1, cores() // len(NAMES))
        options = [
            "--listen",
            "127.0.0.1:0",
            "--engine",
            default_engine(),
            "--model",
            str(model),
            "--threads",
            str(threads),
        ]
        if self.told.discovery == "seeds":
            options.append("--no-mdns")
        for name in NAMES:
            if name == only or name in only:
                self.daemons.append(Daemon(self.folder / name, [*options, *more], name=name, mesh=self.mesh))
                self.daemons[-1].start()

    async def _ready(self, engine: bool = True) -> None:
        ready: list[str] = []

        async def one(daemon: Daemon) -> None:
            await daemon.ready(READY_WITHIN_S, engine=engine)
            ready.append(daemon.label)
            self.view.now("nodes", f"{', '.join(sorted(ready))} ready, {len(ready)} of {len(self.daemons)}")

        self.view.now("nodes", "starting three processes; each loads the model and measures how fast it is")
        await asyncio.gather(*(one(daemon) for daemon in self.daemons))
        if len(self.daemons) == len(NAMES):
            speeds = []
            for daemon in self.daemons:
                agent = (await daemon.status()).agent
                speeds.append(f"{daemon.label} {output.rate(agent.decode_tokens_per_s)}")
            self.view.step("nodes", f"three processes on loopback; tokens written a second: {', '.join(speeds)}")

    async def _summarise(self, document: Document, leader: Daemon) -> local_pb2.ResultReply:
        others = [one for one in self.daemons if one is not leader]
        request = work_pb2.JobRequest(
            summarize=work_pb2.SummarizeRequest(
                title=document.title, media_type=document.media_type, source_name=document.source_name
            )
        )
        began = time.monotonic()
        async with others[0].client() as client:
            accepted = await client.submit(request, document.text.encode())
            held = f"held on {accepted.replicas} of {accepted.replicas_wanted} nodes"
            self.view.step("job", f"summarise “{document.title}”, handed to {others[0].label}; {held}")
            after: Daemon | None = None
            failover: asyncio.Task[Daemon] | None = None
            async with asyncio.timeout(JOB_WITHIN_S):
                async for job in client.watch(accepted.job_id):
                    if failover is not None and failover.done() and after is None:
                        after = failover.result()
                    gone = leader.label if failover is not None else ""
                    now_leads = after.label if after else "" if failover else leader.label
                    self.view.job(job, NAMES, now_leads, gone, began)
                    half = job.tasks_total and 2 * job.tasks_done >= job.tasks_total
                    if failover is None and half and job.state == local_pb2.JOB_STATE_OPEN:
                        killed_at = time.monotonic()
                        await asyncio.to_thread(leader.kill)
                        text = (
                            f"{leader.label}, the leader, by SIGKILL after {job.tasks_done} of {job.tasks_total} tasks"
                        )
                        self.view.step("killed", text, "gone")
                        failover = asyncio.create_task(self._failover(leader, others, killed_at))
            if failover is None:
                raise NotInTime("the job ended before its leader could be killed half-way")
            after = await failover
            reply = await client.result(accepted.job_id)
        self._note_summary(reply, after)
        return reply

    async def _failover(self, leader: Daemon, others: list[Daemon], killed_at: float) -> Daemon:
        async def probe() -> Daemon | None:
            for one in others:
                if (await one.status()).role == "leader":
                    return one
            return None

        after = await until(probe, FAILOVER_WITHIN_S, "a new leader")
        self.told.failover_s = round(time.monotonic() - killed_at, 3)
        self.told.leader_after = after.label
        self.view.step("leader", f"{after.label} took over {output.seconds(self.told.failover_s)} later")
        return after

    def _note_summary(self, reply: local_pb2.ResultReply, after: Daemon) -> None:
        tasks = reply.job.tasks
        by_node = {name: sum(task.node_name == name for task in tasks) for name in NAMES}
        rerun = sum(task.attempts > 1 for task in tasks)
        result = reply.result.summary
        self.told.job = {
            "state": STATE_OF_JOB.get(reply.job.state, "unknown"),
            "tasks": reply.job.tasks_total,
            "tasks_by_node": by_node,
            "tasks_rerun": rerun,
            "words_in": result.words_in,
            "words_out": result.words_out,
            "summary": " ".join(sentence.text for sentence in result.summary.sentences),
        }
        again = f"{rerun} of them started again" if rerun else "none had to run again"
        self.view.step("done", f"{self.told.job['state']} under {after.label}: {len(tasks)} tasks, {again}")

    async def _return(self, killed: Daemon) -> None:
        self.view.now("back", f"{killed.label} starts again with what it had on disk")
        killed.start()
        await killed.ready(READY_WITHIN_S)
        leader = await formed(self.daemons, FORMED_WITHIN_S)
        self.view.step(
            "back", f"{killed.label} is started again, so that a panel of three is there; {leader.label} leads"
        )

    async def _ask(self) -> local_pb2.ResultReply:
        self.view.now("panel", f"{QUESTION} {', '.join(OPTIONS)}?")
        request = work_pb2.JobRequest(
            ask=work_pb2.AskRequest(question=QUESTION, panel=len(NAMES), options=list(OPTIONS)), seed=1
        )
        async with asyncio.timeout(JOB_WITHIN_S), self.daemons[0].client() as client:
            accepted = await client.submit(request)
            async for _ in client.watch(accepted.job_id):
                pass
            reply = await client.result(accepted.job_id)
        panel = reply.result.panel
        votes: dict[str, int] = {}
        for ballot in panel.ballots:
            votes[ballot.answer] = votes.get(ballot.answer, 0) + 1
        minority = [f"{b.node_name}: {b.answer}" for b in panel.ballots if not b.in_majority]
        self.told.ask = {"answer": panel.answer if panel.majority else None, "votes": votes, "minority": minority}
        self.view.step("panel", f"three agents answered: {QUESTION} ({', '.join(OPTIONS)})")
        return reply


def _heading(text: str) -> None:
    print(f"\n{output.bold(text)}\n")


def _model(view: View, document: Document) -> Path:
    """The default model, fetched where it is not there; an interrupt takes back what is half fetched."""
    view.title(
        "kithmesh", f"three nodes, one team: {count_words(document.text):,} words to summarise, a leader to lose"
    )
    with view:
        view.now("model", f"{DEFAULT_NAME}: looking for it")
        model = ensure_default_model(lambda line: view.now("model", line))
        size = f"{model.stat().st_size / 1e6:.0f} MB"
        view.step("model", f"{DEFAULT_NAME}, {size}, on each node; it stays on this machine")
    return model


def _run(given: argparse.Namespace) -> int:
    began = time.monotonic()
    document = read_document(given.file) if given.file else default_document()
    interrupted = False
    view = View()

    async def main(demo: Demo) -> tuple[local_pb2.ResultReply, local_pb2.ResultReply] | None:
        def stop() -> None:
            nonlocal interrupted
            interrupted = True
            playing.cancel()

        playing = asyncio.create_task(demo.play(document, model))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            return await playing
        except asyncio.CancelledError:
            if interrupted:
                return None
            raise

    model = _model(view, document)
    demo = Demo(view, Path(tempfile.mkdtemp(prefix="kith-demo-")))
    try:
        with view:
            ended = asyncio.run(main(demo))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        wrong = demo.close()
    if interrupted or ended is None:
        print("interrupted; its processes and files are gone", file=sys.stderr)
        return ExitCode.INTERRUPTED
    summary, verdict = ended
    _heading(f"Summary of {document.title}")
    print_result(summary)
    _heading(QUESTION)
    print_result(verdict)
    wall_s = time.monotonic() - began
    print(f"\nAll of it took {output.seconds(wall_s)}; its processes and files are gone.")
    for line in wrong:
        print(line, file=sys.stderr)
    if given.json:
        print(json.dumps({"nodes": len(NAMES), **vars(demo.told), "wall_s": round(wall_s, 1)}, ensure_ascii=False))
    return 1 if wrong else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Three nodes summarise a document and lose their leader."
    )
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="text, Markdown, HTML or PDF; default: our docs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except KithError as error:
        print(f"demo: {error.message}" + (f"\n→ {error.remedy}" if error.remedy else ""), file=sys.stderr)
        return int(error.exit_code)
    except (NotInTime, TimeoutError) as late:
        print(f"demo: {late}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; its processes and files are gone", file=sys.stderr)
        return ExitCode.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
