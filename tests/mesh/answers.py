"""A world for the tests of one answer: what a router knows, and what the machine asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.answer import (
    Answer,
    Ask,
    Broke,
    Choice,
    Drop,
    Effect,
    Fail,
    Said,
    Tell,
)
from mesh.wire import common_pb2, engine_pb2

Event = engine_pb2.GenerateEvent

WORDS = [f"w{number} " for number in range(12)]
A, B, C = (Choice(name, 0.2, 0.05, "m", b"v") for name in "abc")
OTHER = Choice("d", 0.2, 0.05, "n", b"other")


def delta(*numbers: int) -> Event:
    text = "".join(WORDS[number] for number in numbers)
    return Event(delta=Event.Delta(text=text, tokens=len(numbers), token_ids=numbers))


def started(prompt: int = 7, cached: int = 3) -> Event:
    return Event(started=Event.Started(prompt_tokens=prompt, cached_tokens=cached))


def finished(tokens: int = 1, reason: str = "stop") -> Event:
    usage = common_pb2.Usage(prompt_tokens=20, completion_tokens=tokens, prefill_seconds=0.5, decode_seconds=1.0)
    return Event(finished=Event.Finished(reason=reason, usage=usage))


def gone(code: str = "node-unreachable", message: str = "it went away") -> common_pb2.Problem:
    return common_pb2.Problem(code=code, message=message)


@dataclass
class World:
    """What a router knows, and what the machine asked of it."""

    choices: Sequence[Choice] = (A, B, C)
    budget: int = 1
    request: engine_pb2.GenerateRequest = field(
        default_factory=lambda: engine_pb2.GenerateRequest(prompt="p", max_tokens=12, stop=["x"], priority=1)
    )
    deadline: float = 100.0
    told: list[Event] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    failed: common_pb2.Problem | None = None
    picks: int = 0

    def __post_init__(self) -> None:
        self.answer = Answer(self.request, self.pick, self.may_hedge, self.deadline)

    def pick(self, request: engine_pb2.GenerateRequest, without: frozenset[str], like: Choice | None) -> Choice | None:
        del request
        self.picks += 1
        able = [choice for choice in self.choices if choice.agent not in without]
        return min(able, key=lambda choice: like is not None and choice.model != like.model, default=None)

    def may_hedge(self) -> bool:
        self.budget -= 1
        return self.budget >= 0

    def do(self, effects: list[Effect]) -> None:
        self.answer.validate()
        for effect in effects:
            match effect:
                case Ask():
                    self.asked.append(effect)
                case Drop(attempt):
                    self.dropped.append(attempt)
                case Tell(event):
                    self.told.append(event)
                case Fail(problem):
                    self.failed = problem

    def begin(self, at: float = 0.0) -> None:
        self.do(self.answer.begin(self.choices[0], at))

    def say(self, attempt: int, *events: Event, at: float) -> None:
        for event in events:
            self.do(self.answer.handle(Said(attempt, event), at))

    def break_(
        self, attempt: int, at: float, *, final: bool = False, code: str = "node-unreachable", why: str = "it went away"
    ) -> None:
        self.do(self.answer.handle(Broke(attempt, gone(code, why), final), at))

    def tick(self, at: float, *doubted: str) -> None:
        self.do(self.answer.tick(at, doubted))

    @property
    def text(self) -> str:
        return "".join(event.delta.text for event in self.told)

    @property
    def usage(self) -> common_pb2.Usage:
        return self.told[-1].finished.usage
