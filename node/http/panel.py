"""The model `kith/panel`: several agents are asked the same, and what they agree on is the answer.

Idea: seats go to distinct agents, of distinct models first; where fewer live than SEATS_MIN, agents are asked again
with other seeds. A closed question (`options`, or a JSON schema with one enumeration) is scored and counted as a job's
panel is. Open answers are counted by their words; without a majority the agents score each other's answers. Who said
what, and how it was counted, stands in the field `kith` of the answer.

Not guaranteed: that a majority is right. Agents of one model err together; `correlated` says when there are any. It is
no job: nothing of it is kept, and it ends with the client's connection.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.wire import common_pb2, engine_pb2, work_pb2
from node.engine.api import AskedT
from node.errors import KithError
from node.http.answering import Answering, Ask, Choice, Piece, Pieces, add_usage, merged, pieces_of
from node.http.fields import Refused
from node.http.naming import PANEL, Live, Named
from node.http.tools import Toolbox
from node.route import Route
from node.router import Router
from node.tasks import run_task
from solver.agreement import best, by_judges, by_overlap
from solver.assemble import assemble
from solver.decompose import check_options, plan_ask
from solver.panel import answer_group, spokesman, tally

SEATS_MIN, SEATS_MAX = 3, 5
#: Sampling seeds of seats are this far apart, so that seats do not share those of choices.
SEED_STEP = 1_000_003


@dataclass
class Seat:
    """One member of the panel. Implements `tasks.Writer` on whatever node the agent is."""

    router: Router
    route: Route
    live: Live
    who: Hashable
    priority: int  # of the question: that of all that it takes
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    answer: str = ""
    problem: str = ""
    scored_by: str = ""  # the node that scored last, where the seat's own was gone

    @property
    def loaded(self) -> engine_pb2.EngineLoaded:
        agent = self.live.agent
        return engine_pb2.EngineLoaded(
            model=agent.model,
            parameters=agent.parameters,
            context_tokens=agent.context_tokens,
            abilities=agent.abilities,
        )

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        return self.router.generate(self.route, self._as_urgent(request), self.who)

    async def score(self, request: engine_pb2.ScoreRequest) -> engine_pb2.ScoreReply:
        """By the seat's agent; where that one is gone, by any with the same weights: it would have said the same."""
        route, asked = replace(self.route, node_asked=""), self._as_urgent(request)
        reply, route = await self.router.questions.score(route, asked, self.who)
        self.scored_by = route.node_name
        return reply

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise AssertionError("a panel counts nothing")

    def _as_urgent(self, request: AskedT) -> AskedT:
        """As the question is: who runs it as a task says nothing of that."""
        own = type(request)()
        own.CopyFrom(request)
        own.priority = self.priority
        return own


def convened(router: Router, named: Named, ask: Ask, who: Hashable) -> Answering:
    """Ask a panel. Raises `KithError` where nobody can be seated, `Refused` for what a panel can not do."""
    if ask.tools.active:
        raise Refused("a panel calls no tools", "tools", "Ask another model.", "unsupported")
    if len(ask.requests) > 1:
        raise Refused("a panel gives one answer", "n", "Leave n out.", "unsupported")
    if ask.requests[0].logprobs:
        raise Refused("an answer of several has no log-probabilities", "logprobs", "Leave it out.", "unsupported")
    options, key = ask.options, ""
    if not options:
        options, key = closed_by(ask.requests[0].json_schema)
    if ask.requests[0].json_schema and not options:
        raise Refused(
            "a panel answers in text, or with one of an enumeration",
            ask.needs.get("json_schema", "response_format"),
            code="unsupported",
        )
    seats = seated(router, named, ask.requests[0], who)
    answer = _closed(seats, ask, options, key) if options else _open(seats, ask.requests[0])
    return Answering(PANEL, merged([answer]), {})


def closed_by(schema: str) -> tuple[tuple[str, ...], str]:
    """Options and property of a schema whose only property is an enumeration of texts; else nothing."""
    if not schema:
        return (), ""
    properties = json.loads(schema).get("properties")
    if not isinstance(properties, dict) or len(properties) != 1:
        return (), ""
    key, inner = next(iter(properties.items()))
    options = inner.get("enum") if isinstance(inner, dict) else None
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        return (), ""
    return tuple(options), key


def seated(router: Router, named: Named, request: engine_pb2.GenerateRequest, who: Hashable) -> list[Seat]:
    """The members, cheapest first, of distinct models before more of one. Raises `KithError`."""
    able: list[Seat] = []
    why: KithError | None = None
    for live in named.agents:
        try:
            route = router.choose(request, live.agent.model, live.node_id)
        except KithError as error:
            why = error
            continue
        able.append(Seat(router, route, live, who, request.priority))
    if not able:
        raise why or KithError("no-agent", "no engine is ready yet", "Wait a moment; `kith status` tells more.")
    able.sort(key=lambda seat: seat.route.cost_s)
    first = list({seat.live.agent.model: seat for seat in reversed(able)}.values())[::-1]
    seats = (first + [seat for seat in able if not any(seat is one for one in first)])[:SEATS_MAX]
    distinct = len(seats)
    while len(seats) < SEATS_MIN:
        again = seats[len(seats) % distinct]
        seats.append(Seat(router, again.route, again.live, who, request.priority))
    return seats


async def _open(seats: list[Seat], request: engine_pb2.GenerateRequest) -> Pieces:
    yield Piece()
    await _all(_written(seat, request, number) for number, seat in enumerate(seats))
    answered = [seat for seat in seats if not seat.problem]
    _check(seats, answered)
    question = request.messages[-1].content if request.messages else request.prompt
    groups = [answer_group(seat.answer, question) for seat in answered]
    count = tally(groups)
    if count.majority:
        chosen = spokesman([seat.answer for seat, group in zip(answered, groups, strict=True) if group == count.winner])
        method, scores = "majority", {}
    else:
        texts = list(dict.fromkeys(seat.answer.strip() for seat in answered if seat.answer.strip())) or [""]
        method, totals = await _agreed(answered, texts, request)
        chosen = texts[best(totals)]
        scores = dict(zip(texts, totals, strict=True))
    ballots = []
    for seat in seats:
        ballot = _ballot(seat, seat.answer.strip() == chosen.strip() or _same(seat, chosen, question, count.majority))
        if seat.answer.strip() in scores:
            ballot["score"] = round(scores[seat.answer.strip()], 4)
        ballots.append(ballot)
    yield _said(chosen, seats, ballots, method)


def _same(seat: Seat, chosen: str, question: str, majority: bool) -> bool:
    return majority and not seat.problem and answer_group(seat.answer, question) == answer_group(chosen, question)


async def _written(seat: Seat, request: engine_pb2.GenerateRequest, number: int) -> None:
    own = engine_pb2.GenerateRequest()
    own.CopyFrom(request)
    own.sampling.seed = (request.sampling.seed + number * SEED_STEP) % (1 << 63)
    choice = Choice()
    try:
        async for piece in pieces_of(seat.router, seat.route, own, 0, Toolbox(), seat.who):
            if piece is not None:
                choice.add(piece)
                if piece.usage is not None:
                    add_usage(seat.usage, piece.usage)
    except KithError as error:
        seat.problem = error.message
    seat.answer = choice.text


async def _agreed(seats: list[Seat], texts: list[str], request: engine_pb2.GenerateRequest) -> tuple[str, list[float]]:
    """How it was judged, and a score for each text."""
    judges: dict[tuple[str, str], Seat] = {}
    for seat in seats:
        if "score" in seat.live.agent.abilities and seat.answer.strip():
            judges.setdefault((seat.live.node_id, seat.live.agent.agent), seat)
    names = list(judges)
    scores: dict[int, list[float]] = {}
    asked = engine_pb2.ScoreRequest(messages=request.messages, prompt=request.prompt, continuations=texts)

    async def judge(number: int) -> None:
        seat = judges[names[number]]
        try:
            reply = await seat.score(asked)
        except KithError:
            return  # the others judge
        add_usage(seat.usage, reply.usage)
        pairs = zip(reply.log_probabilities, reply.token_counts, strict=True)
        scores[number] = [score / max(1, tokens) for score, tokens in pairs]

    if len(texts) > 1:
        await _all(judge(number) for number in range(len(names)))
    if not scores:
        return "overlap", by_overlap(texts)
    authors = [
        frozenset(
            names.index((seat.live.node_id, seat.live.agent.agent))
            for seat in seats
            if seat.answer.strip() == text and (seat.live.node_id, seat.live.agent.agent) in judges
        )
        for text in texts
    ]
    return "scores", by_judges(authors, scores)


async def _closed(seats: list[Seat], ask: Ask, options: tuple[str, ...], key: str) -> Pieces:
    request = ask.requests[0]
    question, context = _question(request)
    try:
        check_options(options)
    except ValueError as error:
        param = ask.needs.get("json_schema", "response_format") if key else "options"
        raise Refused(f"a panel can not choose from these options: {error}", param) from None
    try:
        job = work_pb2.JobRequest(
            ask=work_pb2.AskRequest(question=question, panel=len(seats), options=options, context=context),
            seed=request.sampling.seed,
        )
        plan = plan_ask(b"", job)
    except ValueError as error:
        raise Refused(f"the question can not be asked of a panel: {error}", "messages") from None
    yield Piece()
    results: dict[tuple[int, int], work_pb2.TaskResult] = {}

    async def vote(task: work_pb2.Task, seat: Seat) -> None:
        try:
            result, usage = await run_task(task, [], _no_blob, seat, lambda _: None)
        except KithError as error:
            seat.problem = error.message
            return
        add_usage(seat.usage, usage)
        results[task.index, task.replica] = result

    await _all(vote(task, seat) for task, seat in zip(plan.tasks, seats, strict=True))
    answered = [seat for seat in seats if not seat.problem]
    _check(seats, answered)
    tasks = [task for task in plan.tasks if (task.index, task.replica) in results]
    agents = {
        (task.index, task.replica): (seat.route.agent, seat.live.node_name, seat.live.agent.model)
        for task, seat in zip(tasks, answered, strict=True)
    }
    counted = assemble(job, work_pb2.Plan(tasks=tasks), results, agents, None).panel
    chosen, method = counted.answer, "majority"
    if not counted.majority:
        # The beliefs of all, multiplied: what the panel finds likeliest as one.
        beliefs = [results[task.index, task.replica].scores.log_probabilities for task in tasks]
        chosen = options[best([math.fsum(of[i] for of in beliefs) for i in range(len(options))])]
        method = "probabilities"
    said = iter(counted.ballots)
    ballots = []
    for seat in seats:
        if not seat.problem:
            ballot = next(said)
            seat.answer = ballot.answer
            probabilities = {one: round(p, 4) for one, p in zip(options, ballot.probabilities, strict=True)}
            by = {"node": seat.scored_by or seat.live.node_name}
            ballots.append(_ballot(seat, ballot.answer == chosen) | by | {"probabilities": probabilities})
        else:
            ballots.append(_ballot(seat, False))
    text = json.dumps({key: chosen}, ensure_ascii=False) if key else chosen
    yield _said(text, seats, ballots, method)


def _question(request: engine_pb2.GenerateRequest) -> tuple[str, str]:
    """The last message, and what was said before it."""
    if not request.messages:
        return request.prompt, ""
    *before, last = request.messages
    return last.content, "\n\n".join(f"{message.role}: {message.content}" for message in before)


def _said(text: str, seats: list[Seat], ballots: list[dict[str, Any]], method: str) -> Piece:
    usage = common_pb2.Usage()
    for seat in seats:
        add_usage(usage, seat.usage)
    models = [seat.live.agent.model for seat in seats if not seat.problem]
    panel = {
        "method": method,
        "votes_for": sum(ballot["chosen"] for ballot in ballots),
        "seats": len(seats),
        "correlated": len(set(models)) < len(models),
        "ballots": ballots,
    }
    return Piece(text=text, reason="stop", usage=usage, extension={"panel": panel})


def _ballot(seat: Seat, chosen: bool) -> dict[str, Any]:
    ballot: dict[str, Any] = {"node": seat.live.node_name, "model": seat.live.agent.model}
    if seat.problem:
        return ballot | {"problem": seat.problem, "chosen": False}
    return ballot | {"answer": seat.answer.strip(), "chosen": chosen}


def _check(seats: list[Seat], answered: list[Seat]) -> None:
    if not answered:
        raise KithError("no-agent", f"nobody of the panel answered: {seats[0].problem}", "Ask again.")


async def _all(calls: Any) -> None:
    """Run them together; when this is cancelled, or one of them fails by a defect, so are all."""
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


async def _no_blob(_: common_pb2.BlobRef) -> bytes:
    raise AssertionError("a question has no blob")
