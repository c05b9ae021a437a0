"""kithmesh for programs: a page to start from.

    from kithmesh import Client, LLMAgent, assign

    with Client() as mesh:                                # the node of $KITH_DATA_DIR, or the default one
        print(mesh.ask("Which planet is the largest?", panel=3).answer)
        print(mesh.summarize("report.md").text)

    agent = LLMAgent(system="You answer in one sentence.")
    print(agent.process_instruction("What is a mesh?"))

    assign([[4, 1, 3], [2, 0, 5], [3, 2, 2]])             # [1, 0, 2]: agent of each task, at the least total cost

A node must run on this machine (`kith up`). All calls block, in a notebook too; `node.client.NodeClient` is the same
for asyncio. Every operating error is a `KithError` with a code, a message and a remedy. Nothing here reaches into a
node but through its local door. Threads may share a `Client`; an `LLMAgent` holds one dialogue, so it is one thread's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from node.errors import ExitCode, KithError

if TYPE_CHECKING:
    from mesh.wire import local_pb2, work_pb2
    from node.client import NodeClient

__all__ = [
    "Answer", "Ballot", "Client", "Hit", "KithError", "LLMAgent", "Node", "Sentence", "Summary", "assign",
]  # fmt: skip

Value = TypeVar("Value")

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Node:
    """A node of the mesh, as the asked node sees it."""

    node_id: str
    name: str
    state: str  # "alive", "suspect", "dead" or "left"
    leader: bool
    addresses: tuple[str, ...]  # HOST:PORT
    models: tuple[str, ...]


@dataclass(frozen=True)
class Ballot:
    """What one agent of a panel answered."""

    node_name: str
    model: str
    answer: str
    probabilities: tuple[float, ...]  # of the options, where there were any
    in_majority: bool


@dataclass(frozen=True)
class Answer:
    """A panel's verdict. Invariant: `answer` is None where there was no majority."""

    job_id: str
    answer: str | None
    votes_for: int
    ballots: tuple[Ballot, ...]
    correlated: bool  # agents of one model voted: their errors go together

    @property
    def minority(self) -> tuple[Ballot, ...]:
        return tuple(ballot for ballot in self.ballots if not ballot.in_majority)


@dataclass(frozen=True)
class Sentence:
    text: str
    sources: tuple[str, ...]  # the places of the document that it rests on
    support: float  # 0 to 1: share of its content found there
    verbatim: bool  # taken from the document as it stands


@dataclass(frozen=True)
class Summary:
    job_id: str
    sentences: tuple[Sentence, ...]
    words_in: int
    words_out: int

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


@dataclass(frozen=True)
class Hit:
    """A piece of shared knowledge that fits a query."""

    item_id: str
    title: str
    text: str
    source: str
    score: float


class Client:
    """A connection to the node of `data_dir` (default: $KITH_DATA_DIR, else the platform's folder).

    Raises:
        KithError: from every method; `node-unreachable` where no node runs.
    """

    def __init__(self, data_dir: str | PathLike[str] | None = None) -> None:
        from node.paths import default_data_dir, expanded

        self.data_dir = expanded(data_dir) if data_dir is not None else default_data_dir()
        self._node: NodeClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection. The next call makes a new one."""
        from node.blocking import run

        node, self._node = self._node, None
        if node is not None:
            run(node.close())

    def _run(self, work: Callable[[NodeClient], Coroutine[Any, Any, Value]]) -> Value:
        from node.blocking import run
        from node.client import NodeClient

        async def connected() -> Value:
            if self._node is None:
                self._node = NodeClient(self.data_dir)
            return await work(self._node)

        return run(connected())

    def nodes(self) -> list[Node]:
        """The nodes of the mesh."""
        from node.cli.as_json import address_text, member_state

        return [
            Node(
                node_id=one.node_id,
                name=one.name,
                state=member_state(one),
                leader=one.leader,
                addresses=tuple(address_text(address) for address in one.addresses),
                models=tuple(agent.model for agent in one.profile.agents),
            )
            for one in self._run(lambda node: node.nodes())
        ]

    def ask(
        self, question: str, *, panel: int = 1, options: Sequence[str] = (), context: str = "", seed: int = 0
    ) -> Answer:
        """Put a question to `panel` agents that answer independently and vote; blocks until the verdict.

        Args:
            options: a closed question when given: at least two, all different.
            context: what the agents may read.
            seed: same seed, same choices; 0 draws one.

        Raises:
            KithError: `panel-too-large`, `bad-options`, `job-failed`, …; a missing majority is no error.
        """
        from mesh.wire import work_pb2

        _no_single_text(options, "options", 'options=["yes", "no"]')
        request = work_pb2.AskRequest(question=question, panel=panel, options=options, context=context)
        reply = self._job(work_pb2.JobRequest(ask=request, seed=seed), b"")
        result = reply.result.panel
        ballots = tuple(
            Ballot(
                node_name=one.node_name,
                model=one.model,
                answer=one.answer,
                probabilities=tuple(one.probabilities),
                in_majority=one.in_majority,
            )
            for one in result.ballots
        )
        return Answer(
            job_id=reply.job.job_id.hex(),
            answer=result.answer if result.majority else None,
            votes_for=result.votes_for,
            ballots=ballots,
            correlated=result.correlated,
        )

    def summarize(self, path: str | PathLike[str], *, sentences: int = 0, seed: int = 0) -> Summary:
        """Summarize a document (text, Markdown, HTML or PDF); blocks until it is done.

        Raises:
            KithError: `bad-document` where it can not be read; `job-failed`, …
        """
        from mesh.wire import work_pb2
        from node.documents import read_document

        document = read_document(Path(path))
        request = work_pb2.SummarizeRequest(
            title=document.title,
            media_type=document.media_type,
            sentences=sentences,
            source_name=document.source_name,
        )
        reply = self._job(work_pb2.JobRequest(summarize=request, seed=seed), document.text.encode())
        result, text = reply.result.summary, reply.document.decode(errors="replace") or document.text
        found = tuple(
            Sentence(
                text=one.text,
                sources=tuple(text[span.begin : span.end] for span in one.sources),
                support=one.support,
                verbatim=one.verbatim,
            )
            for one in result.summary.sentences
        )
        return Summary(reply.job.job_id.hex(), found, result.words_in, result.words_out)

    def _job(self, request: work_pb2.JobRequest, document: bytes) -> local_pb2.ResultReply:
        from node.cli.progress import Silent, follow

        async def work(node: NodeClient) -> local_pb2.ResultReply:
            accepted = await node.submit(request, document)
            await follow(node, accepted.job_id, Silent())
            return await node.result(accepted.job_id)

        return self._run(work)

    def chat(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        node: str = "",
        max_tokens: int = 256,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> str:
        """The answer to `messages`, pairs of role ("system", "user", "assistant") and text.

        Args:
            node: name or id of the node that shall answer; empty: the mesh chooses.

        Raises:
            KithError: `bad-request`, `node-unknown`, `prompt-too-long`, `no-agent`, …
        """
        from mesh.wire import engine_pb2, local_pb2

        for message in messages:
            if not isinstance(message, tuple | list) or len(message) != 2 or message[0] not in ROLES:
                what = "a message is no pair of a role (system, user, assistant) and a text"
                raise KithError("bad-request", what, 'As in: chat([("user", "Hello.")]).', ExitCode.BAD_INPUT)
        request = engine_pb2.GenerateRequest(
            messages=[engine_pb2.ChatMessage(role=role, content=text) for role, text in messages],
            max_tokens=max_tokens,
            sampling=engine_pb2.Sampling(temperature=temperature, top_p=0.95 if temperature else 0.0, seed=seed),
            priority=1,
        )

        async def work(client: NodeClient) -> str:
            pieces = []
            async for event in client.chat(local_pb2.ChatRequest(request=request, node=node)):
                if event.generate.HasField("problem"):
                    raise KithError.from_wire(event.generate.problem)
                pieces.append(event.generate.delta.text)
            return "".join(pieces)

        return self._run(work)

    def add_knowledge(self, text: str, *, title: str = "", source: str = "", tags: Sequence[str] = ()) -> str:
        """Share a piece of knowledge with every node; its id."""
        from mesh.wire import facts_pb2

        _no_single_text(tags, "tags", 'tags=["house"]')
        item = facts_pb2.KnowledgeAdded(title=title, text=text, source=source, tags=tags, media_type="text/plain")
        return self._run(lambda node: node.add_knowledge(item)).hex()

    def search(self, query: str, limit: int = 10) -> list[Hit]:
        """What the mesh knows about `query`, best first."""
        return [
            Hit(one.item_id.hex(), one.title, one.text, one.source, one.score)
            for one in self._run(lambda node: node.search_knowledge(query, limit))
        ]


class LLMAgent:
    """An agent of the mesh that remembers its dialogue, dropping the oldest turns when the context is full.

    Args:
        data_dir: of the node that is asked; None: $KITH_DATA_DIR or the default.
        node: name or id of the node that shall answer; None: the mesh chooses each time.
        system: what the agent is told beforehand.
    """

    def __init__(self, data_dir: str | PathLike[str] | None = None, node: str | None = None, system: str = "") -> None:
        from node.chat_history import ChatHistory

        self.client = Client(data_dir)
        self.node = node or ""
        self._history = ChatHistory(system=system)

    def process_instruction(self, text: str) -> str:
        """Answer in the dialogue so far, and remember both. Raises `KithError`; the dialogue is then as before."""
        if not self._history.context_tokens:
            self._history.context_tokens = self.client._run(lambda client: client.context_tokens(self.node))
        self._history.ask(text)
        try:
            pairs = [(message.role, message.content) for message in self._history.messages()]
            answer = self.client.chat(pairs, node=self.node, max_tokens=self._history.answer_tokens)
        except BaseException:
            self._history.take_back()
            raise
        self._history.answer(answer)
        return answer

    def generate(self, prompt: str) -> str:
        """Answer `prompt` alone: no dialogue before it, none kept. Raises `KithError`."""
        system = [("system", self._history.system)] if self._history.system else []
        return self.client.chat([*system, ("user", prompt)], node=self.node)

    def retrieve(self, query: str, limit: int = 5) -> list[Hit]:
        """What the mesh knows about `query`, best first. Raises `KithError`."""
        return self.client.search(query, limit)

    def dialogue(self) -> Iterator[tuple[str, str]]:
        """The dialogue so far: role and text."""
        return ((message.role, message.content) for message in self._history.messages())

    def close(self) -> None:
        """Drop the connection."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_single_text(given: Sequence[str], name: str, example: str) -> None:
    """One text is a sequence of texts, too: of its letters, which nobody means. Raises `KithError`."""
    if isinstance(given, str):
        raise KithError(
            "bad-request", f"{name} is one text, not a list of them", f"As in: {example}.", ExitCode.BAD_INPUT
        )


def assign(costs: Sequence[Sequence[float]], capacity: Sequence[int] | None = None) -> list[int]:
    """The agent of each task, so that the total cost is the least that there is; proven by cvxpy.

    Args:
        costs: a row a task, a column an agent.
        capacity: tasks that each agent can take; None: one each.

    Raises:
        ValueError: where the tasks do not fit or a cost is not a number.
    """
    from solver.allocation import assign as solve

    return solve(costs, capacity)
