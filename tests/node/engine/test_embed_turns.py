"""Who is asked for vectors is asked in turn."""

import threading
from typing import Any

from mesh.wire import engine_pb2
from node.engine.backend import Outbox, Request
from node.engine.embed_turns import EmbedTurns
from node.engine.embedding import VectorWork
from node.engine.waiting import AGED_S


class Batches(VectorWork):
    """So many batches of ten tokens each."""

    def __init__(self, name: str, batches: int, log: list[str], **asked: Any) -> None:
        command = engine_pb2.EngineCommand(embed=engine_pb2.EmbedRequest(**asked))
        super().__init__(Request(command, Outbox(lambda _: None), lambda _: None))
        self.name, self.left, self.log = name, batches, log

    @property
    def next_tokens(self) -> int:
        return 10

    def step(self) -> int:
        self.log.append(self.name)
        self.left -= 1
        if not self.left:
            self.end(engine_pb2.EngineEvent(embedded=engine_pb2.EmbedReply()))
        return 10


def test_a_request_with_many_batches_does_not_keep_out_one_with_few() -> None:
    turns, log = EmbedTurns(threading.Condition()), list[str]()
    for name, batches in (("long", 4), ("short", 1), ("middle", 2)):
        turns.add(Batches(name, batches, log))
    assert len(turns) == 3
    assert sum(turns.step() for _ in range(7)) == 70
    assert log == ["long", "short", "middle", "long", "middle", "long", "long"]
    assert (len(turns), turns.step()) == (0, 0)


def test_one_that_was_cancelled_costs_no_batch() -> None:
    turns, log = EmbedTurns(threading.Condition()), list[str]()
    gone = Batches("gone", 3, log)
    turns.add(gone)
    gone.request.cancelled = True
    assert turns.step() == 0
    assert (gone.done, gone.request.over, len(turns), log) == (True, True, 0, [])


def test_what_is_not_urgent_has_its_batches_after_a_while_beside_urgent_ones_without_end() -> None:
    turns, log = EmbedTurns(threading.Condition()), list[str]()
    for _ in range(3):
        turns.add(Batches("urgent", 10_000, log, owner="many", priority=1))
    old = Batches("old", 4, log, owner="few")
    turns.add(old)
    for _ in range(20):
        turns.step()
    assert "old" not in log, "more urgent ones wait"
    old.queued_at -= AGED_S
    for _ in range(8):
        turns.step()
    assert log.count("old") == 4, "every other batch, those that it had to wait for again included"
    assert (old.done, len(turns)) == (True, 3)
