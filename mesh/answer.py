"""One answer to one client, though the agents that write it may change on the way.

    begun ──first token──▶ streaming ──silent, gone──▶ moving ──first token of the next──▶ streaming ─▶ finished

Idea: an answer is a sequence of attempts. An attempt asks one agent to go on from what the client was told so far; at
most two live at once, and whichever says the next token first leads: the other is dropped in the same step. So nothing
is told twice, whatever arrives late. A second attempt begins
  - as a hedge, once, where the first token is later than the cost model says it should be;
  - where the stream stands still for much longer than it ever did (both from a budget that all answers share, so that
    a mesh that is slow because it has too much to do is not given more);
  - at once, and from no budget, where the agent is gone, or is silent and the mesh doubts its node.

The next agent goes on from the tokens where its vocabulary is the same, else from the text. What a client sees of a
move is a pause.

Does not: open streams, choose by cost (it asks `pick`), or read a clock. Not guaranteed: that text after a move is what
the first agent would have said. Greedy text is, as far as both compute alike; so is sampled text where the engine draws
each token from the seed and its place in the answer, as the llama one does. Elsewhere it is another draw.

Source: hedged requests, Dean and Barroso, "The tail at scale" (2013).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mesh.wire import common_pb2, engine_pb2

#: The first token is late after this many times what the cost model says, between these bounds, seconds.
LATE_FACTOR = 2.0
LATE_MIN_S, LATE_MAX_S = 1.0, 30.0
#: A stream stands still after this many times its longest pause so far (or one step of its engine), at least so long.
STALL_FACTOR = 4.0
STALL_MIN_S = 1.5
#: So long may an agent be silent whose node the mesh doubts, seconds: the more, the longer its usual pauses are.
DOUBTED_MIN_S, DOUBTED_MAX_S = 0.25, 1.0
#: Two looks at a silent agent are at least so far apart, seconds.
LOOK_MIN_S = 0.01
#: Agents that may fail one answer: then the answer is at fault, not they.
MOVES_MAX = 4
#: What one agent refuses and another may do, the one that says the most first. Asking the same agent again is no use.
REFUSALS = ("agent-refused", "prompt-too-long")
#: Of an agent that could answer, later: asked again by themselves, clients wait.
BUSY = ("busy", "too-many-requests")
#: Of all reasons together: they travel in the headers of the answer, which gRPC bounds to 8 KiB, percent-encoded.
REASONS_CHARACTERS_MAX = 600


class State(Enum):
    BEGUN = "begun"  # no token yet
    STREAMING = "streaming"
    MOVING = "moving"  # told a part; who told it is gone, another one is asked
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Choice:
    """An agent that can answer, and what is expected of it."""

    agent: str  # unique in the mesh
    first_token_s: float  # until its first token
    step_s: float  # its longest usual pause: one step of its engine
    model: str = ""
    vocabulary: bytes = b""  # empty: not known


class Pick(Protocol):
    def __call__(
        self, request: engine_pb2.GenerateRequest, without: frozenset[str], like: Choice | None
    ) -> Choice | None:
        """The best agent for this request but these; one of the model of `like` before others."""


def why(problems: Sequence[common_pb2.Problem], told: bool = False) -> common_pb2.Problem:
    """What is told where nobody is left to ask: that somebody is only busy, then the first failure that may pass; else
    every refusal, for each names another thing that would have to change.

    Args:
        problems: at least one, in the order in which they came.
        told: a part of the answer was, so the whole will not come by waiting.
    """
    passing = [problem for problem in problems if problem.code not in REFUSALS]
    busy = [problem for problem in passing if problem.code in BUSY and not told]
    if passing:
        return (busy or passing)[0]
    ranked = sorted(problems, key=lambda problem: REFUSALS.index(problem.code))
    said = common_pb2.Problem()
    said.CopyFrom(ranked[0])
    said.message = "; ".join(dict.fromkeys(problem.message for problem in ranked))[:REASONS_CHARACTERS_MAX]
    return said


# What happens


@dataclass(frozen=True, slots=True)
class Said:
    attempt: int
    event: engine_pb2.GenerateEvent


@dataclass(frozen=True, slots=True)
class Broke:
    """An attempt ended without `finished`. `final`: any agent would refuse it."""

    attempt: int
    problem: common_pb2.Problem
    final: bool = False


# What to do about it


@dataclass(frozen=True, slots=True)
class Ask:
    attempt: int
    choice: Choice
    request: engine_pb2.GenerateRequest
    why: str  # "first", "late", "stalled", "gone"


@dataclass(frozen=True, slots=True)
class Drop:
    """Cancel this attempt; what it still says does not count."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Tell:
    """For the client."""

    event: engine_pb2.GenerateEvent


@dataclass(frozen=True, slots=True)
class Fail:
    """The end, without `finished`. What was told stays told."""

    problem: common_pb2.Problem


Effect = Ask | Drop | Tell | Fail


@dataclass(slots=True)
class _Attempt:
    choice: Choice
    asked_at: float
    base_characters: int  # told when it was asked
    base_tokens: int
    heard_at: float
    first_at: float = 0.0  # its first token
    longest_s: float = 0.0  # pause between two of its events
    started: engine_pb2.GenerateEvent | None = None

    def silent_s(self, now: float) -> float:
        return now - self.heard_at

    @property
    def patience_s(self) -> float:
        if not self.first_at:
            return min(LATE_MAX_S, max(LATE_MIN_S, LATE_FACTOR * self.choice.first_token_s))
        return max(STALL_MIN_S, STALL_FACTOR * max(self.longest_s, self.choice.step_s))

    @property
    def doubted_s(self) -> float:
        return min(DOUBTED_MAX_S, max(DOUBTED_MIN_S, 2.0 * self.longest_s))


class Answer:
    """Invariant: only what the leading attempt says is told, and each other one goes on from all that was told."""

    def __init__(
        self,
        request: engine_pb2.GenerateRequest,
        pick: Pick,
        may_hedge: Callable[[], bool],
        deadline: float,
    ) -> None:
        """`may_hedge`: takes one from the budget, or says no. `deadline`: in the time that `now` is in."""
        self._request = request
        self._pick = pick
        self._may_hedge = may_hedge
        self.deadline = deadline
        self.state = State.BEGUN
        self.hedges = 0
        self.moves = 0
        self.text = ""
        self.tokens = 0
        self._live: dict[int, _Attempt] = {}
        self._lead: int | None = None
        self._last: Choice | None = None  # who led, or was asked, last
        self._attempts = 0
        self._failed: set[str] = set()
        self._problems: list[common_pb2.Problem] = []  # of those that failed, as they did
        self._token_ids: list[int] = []
        self._ids_of: bytes | None = None  # vocabulary of all tokens told; empty: they are not all known
        self._began_at = 0.0
        self._look_at: dict[int, float] = {}  # when a silent attempt is worth another look
        self._spent = common_pb2.Usage()  # by those who led before

    # What others ask

    @property
    def live(self) -> dict[int, Choice]:
        return {number: attempt.choice for number, attempt in self._live.items()}

    @property
    def wake_at(self) -> float:
        """When to tick at the latest, unless something happens before."""
        return min([self.deadline, *self._look_at.values()])

    def validate(self) -> None:
        assert len(self._live) <= 2
        assert self._lead is None or self._lead in self._live or self.state is State.FINISHED
        assert not (self.state is State.FINISHED and self._live)
        assert self._look_at.keys() == self._live.keys()
        for number, attempt in self._live.items():
            assert number == self._lead or attempt.base_characters == len(self.text)
        assert len({attempt.choice.agent for attempt in self._live.values()}) == len(self._live)

    # What happens

    def begin(self, choice: Choice, now: float) -> list[Effect]:
        assert self._attempts == 0
        self._began_at = now
        return self._ask(choice, self._request, "first", now)

    def handle(self, event: Said | Broke, now: float) -> list[Effect]:
        if event.attempt not in self._live or self.state is State.FINISHED:
            return []
        if isinstance(event, Broke):
            return self._broke(event.attempt, event.problem, event.final, now)
        match event.event.WhichOneof("event"):
            case "started":
                attempt = self._live[event.attempt]
                attempt.started = event.event
                self._heard(event.attempt, now)
                return []
            case "delta":
                return self._delta(event.attempt, event.event, now)
            case "finished" if event.event.finished.reason != "cancelled":
                return self._finished(event.attempt, event.event, now)
            case "finished":
                problem = common_pb2.Problem(code="node-draining", message="the node stopped in its answer")
                return self._broke(event.attempt, problem, False, now)
            case "problem":
                return self._broke(event.attempt, event.event.problem, False, now)
        return []  # of a later release

    def tick(self, now: float, doubted: Collection[str]) -> list[Effect]:
        """`doubted`: agents on nodes that are suspect, or whose engine says that it stands still."""
        if self.state is State.FINISHED:
            return []
        if now >= self.deadline:
            return self._fail(common_pb2.Problem(code="timed-out", message="the answer took too long"))
        effects: list[Effect] = []
        for number, attempt in list(self._live.items()):
            if len(self._live) == 1:
                if attempt.choice.agent in doubted and attempt.silent_s(now) >= attempt.doubted_s:
                    effects += self._instead(number, now)
                elif attempt.silent_s(now) >= attempt.patience_s:
                    effects += self._second(attempt, now)
            if number in self._live:
                self._look_again(number, now)
        return effects

    def waited(self, seconds: float) -> None:
        """The client took so long for what it was told: nobody else was late meanwhile."""
        for number, attempt in self._live.items():
            attempt.heard_at += seconds
            self._look_at[number] += seconds

    # Attempts

    def _ask(self, choice: Choice, request: engine_pb2.GenerateRequest, why: str, now: float) -> list[Effect]:
        self._attempts += 1
        self._live[self._attempts] = _Attempt(choice, now, len(self.text), self.tokens, now)
        self._last = choice
        self._look_again(self._attempts, now)
        return [Ask(self._attempts, choice, request, why)]

    def _instead(self, number: int, now: float) -> list[Effect]:
        """Ask another one instead of an agent that is in doubt. Where there is none, the doubt may be wrong."""
        found = self._next(now) if self.moves < MOVES_MAX else None
        if found is None:
            return []
        problem = common_pb2.Problem(code="node-unreachable", message="the node that answered fell silent")
        return [Drop(number), *self._broke(number, problem, False, now, found)]

    def _second(self, silent: _Attempt, now: float) -> list[Effect]:
        """Ask another one beside an agent that is late; the state says what for."""
        if silent.first_at:
            if self.moves >= MOVES_MAX:
                return []
        elif self.hedges or self._told:
            return []
        found = self._next(now)
        if found is None or not self._may_hedge():
            return []
        if silent.first_at:
            return self._ask(*found, "stalled", now)
        self.hedges += 1
        return self._ask(*found, "late", now)

    def _next(self, now: float) -> tuple[Choice, engine_pb2.GenerateRequest] | None:
        """The next best agent, and what to ask of it."""
        without = self._failed | {attempt.choice.agent for attempt in self._live.values()}
        assert self._last is not None
        known = self._ids_of if self._told else self._last.vocabulary
        rest = self._rest(False, now)
        while (choice := self._pick(rest, frozenset(without), self._last)) is not None:
            # A beginning that the client gave as text was never cut into tokens here.
            same = bool(known) and choice.vocabulary == known and not (self._told and self._request.continue_from)
            if same or not self._request.continue_tokens:
                return choice, self._rest(True, now) if same else rest
            without.add(choice.agent)  # the client's own tokens would mean something else there
        return None

    @property
    def _told(self) -> bool:
        return bool(self.text or self.tokens)

    def _rest(self, by_tokens: bool, now: float) -> engine_pb2.GenerateRequest:
        """The request for what is still to be said, after the tokens told or after the text."""
        rest = engine_pb2.GenerateRequest()
        rest.CopyFrom(self._request)
        if rest.useful_seconds and not self._told:
            rest.useful_seconds = max(0.001, rest.useful_seconds - (now - self._began_at))
        if self._told:
            rest.useful_seconds = 0.0
            if by_tokens:
                rest.continue_tokens.extend(self._token_ids)
                rest.continue_from = ""
            else:
                rest.continue_from += self.text
        if self._request.max_tokens:
            rest.max_tokens = max(1, self._request.max_tokens - self.tokens)
        return rest

    def _broke(
        self,
        number: int,
        problem: common_pb2.Problem,
        final: bool,
        now: float,
        found: tuple[Choice, engine_pb2.GenerateRequest] | None = None,
    ) -> list[Effect]:
        """`found`: who is asked next, where that is known already."""
        attempt = self._live.pop(number)
        del self._look_at[number]
        self._failed.add(attempt.choice.agent)
        self._problems.append(problem)
        if number == self._lead:
            self._lead = None
            self._account(attempt)
        refused = problem.code in REFUSALS and not self._told  # costs nothing, and nobody is asked twice
        if self._live:
            self.moves += not refused
            return []  # a second one was asked already
        if final and not self._told:
            return self._fail(problem)
        if self._request.max_tokens and self.tokens >= self._request.max_tokens:
            return self._end("length", None, common_pb2.Usage(), now)
        if self.moves >= MOVES_MAX and not refused:
            return self._fail(why(self._problems, self._told))
        found = found or self._next(now)
        if found is None:
            return self._fail(why(self._problems, self._told))
        self.moves += not refused
        self.state = State.MOVING if self._told else State.BEGUN
        return self._ask(*found, "gone", now)

    def _account(self, attempt: _Attempt) -> None:
        """One that led and said no `finished`: what it cost, as seen from here."""
        self._spent.prefill_seconds += attempt.first_at - attempt.asked_at
        self._spent.decode_seconds += attempt.heard_at - attempt.first_at

    # What an attempt says

    def _heard(self, number: int, now: float) -> None:
        attempt = self._live[number]
        if attempt.first_at:
            attempt.longest_s = max(attempt.longest_s, attempt.silent_s(now))
        attempt.heard_at = now
        self._look_again(number, now)

    def _look_again(self, number: int, now: float) -> None:
        """Doubt may come at any time, and the budget may grow: a silent attempt is looked at again and again."""
        attempt = self._live[number]
        left = attempt.patience_s - attempt.silent_s(now)
        self._look_at[number] = now + max(LOOK_MIN_S, min(attempt.doubted_s, left if left > 0 else attempt.doubted_s))

    def _leads(self, number: int, now: float) -> list[Effect]:
        """The next word is this one's: the others are dropped."""
        effects: list[Effect] = []
        attempt = self._live[number]
        for other in [other for other in self._live if other != number]:
            if other == self._lead:  # it stood still; one that moves again first has failed nothing
                self.moves += 1
                self._account(self._live[other])
            del self._live[other], self._look_at[other]
            effects.append(Drop(other))
        if self._lead != number:
            assert (attempt.base_characters, attempt.base_tokens) == (len(self.text), self.tokens)
            if attempt.started is not None and not self._told:
                effects.append(Tell(attempt.started))
                self._spent.prompt_tokens = attempt.started.started.prompt_tokens
                self._spent.cached_tokens = attempt.started.started.cached_tokens
            self._lead = number
            self._last = attempt.choice
            if self._ids_of is None:
                self._ids_of = attempt.choice.vocabulary
            elif self._ids_of != attempt.choice.vocabulary:
                self._ids_of = b""
        self._heard(number, now)
        return effects

    def _delta(self, number: int, event: engine_pb2.GenerateEvent, now: float) -> list[Effect]:
        effects = self._leads(number, now)
        attempt = self._live[number]
        attempt.first_at = attempt.first_at or now
        delta = event.delta
        if len(delta.token_ids) == delta.tokens:
            self._token_ids.extend(delta.token_ids)
        else:
            self._ids_of = b""
        self.text += delta.text
        self.tokens += delta.tokens
        self.state = State.STREAMING
        return [*effects, Tell(event)]

    def _finished(self, number: int, event: engine_pb2.GenerateEvent, now: float) -> list[Effect]:
        effects = self._leads(number, now)
        attempt = self._live[number]
        return [*effects, *self._end(event.finished.reason, attempt, event.finished.usage, now)]

    def _end(self, reason: str, by: _Attempt | None, usage: common_pb2.Usage, now: float) -> list[Effect]:
        """Finished, with the usage of all who led."""
        total = common_pb2.Usage()
        total.CopyFrom(usage)
        if by is None or by.base_characters or by.base_tokens:
            total.prompt_tokens = self._spent.prompt_tokens or usage.prompt_tokens
            total.cached_tokens = self._spent.cached_tokens
            total.completion_tokens = usage.completion_tokens + (self.tokens if by is None else by.base_tokens)
            total.prefill_seconds += self._spent.prefill_seconds
            total.decode_seconds += self._spent.decode_seconds
        self.state = State.FINISHED
        self._live.clear()
        self._look_at.clear()
        finished = engine_pb2.GenerateEvent.Finished(reason=reason, usage=total)
        return [Tell(engine_pb2.GenerateEvent(finished=finished))]

    def _fail(self, problem: common_pb2.Problem) -> list[Effect]:
        effects: list[Effect] = [Drop(number) for number in self._live]
        self.state = State.FINISHED
        self._live.clear()
        self._look_at.clear()
        said = common_pb2.Problem()
        said.CopyFrom(problem)
        if self._told:
            said.message += f"; {self.tokens} tokens of the answer were sent, and stay"
            said.remedy = "Ask again for the rest."
        elif not said.remedy:
            said.remedy = "Ask again."
        return [*effects, Fail(said)]
