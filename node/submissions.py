"""Taking in a client's job: check it, store what it reads, and say how many nodes hold it.

Idea: the job's id is the hash of the client's random key and the request, so a client that did not hear the answer asks
again, here or elsewhere, and gets the same job. When a job counts as accepted is decided by mesh/acceptance.py, which
answers by the deadline whatever happens.
"""

import asyncio
import hashlib
from collections.abc import Callable

from mesh import effects, events
from mesh.facts import FACT_BYTES_MAX
from mesh.replica import Replica
from mesh.surroundings import task_agents
from mesh.wire import common_pb2, facts_pb2, local_pb2, work_pb2
from node.blobs import Blobs
from node.denied import node_denied
from node.errors import ExitCode, KithError
from solver.decompose import check_options

REPLICA_DEADLINE_S = 5.0
#: Text of a document, UTF-8 bytes; the CLI refuses earlier with the same figure.
DOCUMENT_BYTES_MAX = 16 << 20
CLIENT_KEY_BYTES_MAX = 64
OPEN_JOBS_MAX = 1000


class Submissions:
    def __init__(
        self,
        post: Callable[[events.Event], None],
        replica: Replica,
        blobs: Blobs,
    ) -> None:
        self._post = post
        self._replica = replica
        self._blobs = blobs
        self._asked: dict[int, asyncio.Future[effects.AnswerSubmit]] = {}
        self._tickets = 0
        self.draining = False

    def answered(self, effect: effects.AnswerSubmit) -> None:
        future = self._asked.pop(effect.ticket, None)
        if future is not None and not future.done():
            future.set_result(effect)

    def close(self) -> None:
        """Nobody answers any more."""
        self.draining = True
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_draining())

    async def submit(self, header: local_pb2.SubmitHeader, document: bytes) -> local_pb2.SubmitReply:
        """Raises `KithError`: bad request, panel too large, too few copies (names the job, which goes on)."""
        if self.draining:
            raise _draining()
        if self._replica.denied:
            raise node_denied(self._replica)
        request = self._read(header, document)
        job_id = job_id_of(header.client_key, request)
        if job_id not in self._replica.ledger.jobs:  # a retry is asked nothing that was right when it was accepted
            self._check_may_begin(request, document)
        blobs = []
        if request.WhichOneof("kind") == "summarize":
            blobs = [await self._blobs.put(document)]
        if not request.seed:
            request.seed = int.from_bytes(hashlib.sha256(b"seed" + job_id).digest()[:6], "big")
        submitted = facts_pb2.JobSubmitted(
            job_id=job_id, request=request, blobs=blobs, client_key=bytes(header.client_key)
        )
        if submitted.ByteSize() > FACT_BYTES_MAX - 512:
            raise KithError(
                "bad-request",
                f"the request is {submitted.ByteSize()} bytes, more than a job may carry",
                "Shorten the question and its context to about 15,000 bytes.",
                ExitCode.BAD_INPUT,
            )
        answer = await self._ask(submitted, header.replica_deadline_s or REPLICA_DEADLINE_S)
        if not answer.copies:
            raise node_denied(self._replica) if self._replica.denied else _on_no_disk(job_id)
        if answer.copies < header.min_replicas:
            raise KithError(
                "too-few-copies",
                f"job {job_id.hex()[:12]} is accepted, but on {answer.copies} of {header.min_replicas} nodes only",
                "It goes on and more copies are made as nodes appear; `kith cancel` ends it.",
                ExitCode.UNAVAILABLE,
            )
        return local_pb2.SubmitReply(job_id=job_id, replicas=answer.copies, replicas_wanted=answer.wanted)

    async def _ask(self, submitted: facts_pb2.JobSubmitted, deadline_s: float) -> effects.AnswerSubmit:
        self._tickets += 1
        ticket = self._tickets
        future: asyncio.Future[effects.AnswerSubmit] = asyncio.get_running_loop().create_future()
        self._asked[ticket] = future
        try:
            self._post(events.SubmitRequested(ticket, submitted, deadline_s))
            return await future
        finally:
            self._asked.pop(ticket, None)

    def _read(self, header: local_pb2.SubmitHeader, document: bytes) -> work_pb2.JobRequest:
        """The request as it stands in the job. Raises `KithError` where it is none."""
        request = work_pb2.JobRequest()
        request.CopyFrom(header.request)
        if not header.client_key or len(header.client_key) > CLIENT_KEY_BYTES_MAX:
            raise _bad("the submission has no key of its own", "Send 16 random bytes as client_key.")
        match request.WhichOneof("kind"):
            case "summarize":
                ref = common_pb2.BlobRef(sha256=hashlib.sha256(document).digest(), size_bytes=len(document))
                request.summarize.document.CopyFrom(ref)
            case "ask":
                request.ask.panel = request.ask.panel or 1
            case _:
                raise _bad("the request asks for nothing", "Ask for a summary or an answer.")
        return request

    def _check_may_begin(self, request: work_pb2.JobRequest, document: bytes) -> None:
        if len(self._replica.ledger.open_jobs()) >= OPEN_JOBS_MAX:
            raise KithError("busy", f"{OPEN_JOBS_MAX} jobs are open already", "Wait, or cancel some.")
        if request.WhichOneof("kind") == "summarize":
            self._check_document(document)
        else:
            self._check_question(request.ask)

    def _check_document(self, document: bytes) -> None:
        if len(document) > DOCUMENT_BYTES_MAX:
            raise KithError(
                "bad-document",
                f"the document is {len(document) >> 20} MiB of text, more than {DOCUMENT_BYTES_MAX >> 20}",
                "Split it and submit the parts.",
                ExitCode.BAD_INPUT,
            )
        try:
            text = document.decode()
        except UnicodeDecodeError as error:
            raise KithError(
                "bad-document", "the document is not UTF-8 text", "Convert it to UTF-8.", ExitCode.BAD_INPUT
            ) from error
        if not text.strip():
            raise KithError("bad-document", "the document is empty", "Submit one that holds text.", ExitCode.BAD_INPUT)

    def _check_question(self, ask: work_pb2.AskRequest) -> None:
        if not ask.question.strip():
            raise _bad("the question is empty", 'Ask something: kith ask "How many moons has Mars?"')
        agents = sum(len(task_agents(self._replica, node_id)) for node_id in self._replica.membership.view())
        if ask.panel > max(1, agents):
            raise KithError(
                "panel-too-large",
                f"a panel of {ask.panel} needs {ask.panel} agents that write; only {agents} here",
                f"Start more nodes, or ask a panel of {max(1, agents)}.",
                ExitCode.UNAVAILABLE,
            )
        if ask.options:
            try:
                check_options(ask.options)
            except ValueError as error:
                raise KithError(
                    "bad-options", str(error), "Give at least two different options.", ExitCode.BAD_INPUT
                ) from error


def job_id_of(client_key: bytes, request: work_pb2.JobRequest) -> bytes:
    """32 bytes: the same key and request is the same job, wherever it is submitted."""
    return hashlib.sha256(
        b"kith-job-v1\0" + hashlib.sha256(client_key).digest() + request.SerializeToString(deterministic=True)
    ).digest()


def _on_no_disk(job_id: bytes) -> KithError:
    return KithError(
        "too-few-copies",
        f"job {job_id.hex()[:12]} is not on a disk yet: this node's does not keep up",
        "It goes on once it is, and is lost if the node ends before; `kith jobs` shows it. Check the disk.",
        ExitCode.UNAVAILABLE,
    )


def _draining() -> KithError:
    return KithError("node-draining", "this node is stopping", "Submit to another node.", ExitCode.UNAVAILABLE)


def _bad(message: str, remedy: str) -> KithError:
    return KithError("bad-request", message, remedy, ExitCode.BAD_INPUT)
