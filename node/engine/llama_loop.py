"""Continuous batching: one thread owns the context and turns, step by step, many requests into shared batches.

A step: take in what waits, drop what was cancelled, then fill one batch: a row for every sequence that is generating,
and what is left of the batch for prompts, in order of admission. Decode, let each work look at its logits, send all
events of the step in one write. Rows are sorted by sequence id, which the split KV cache needs to keep a batch whole.

Sources: Orca (iteration-level scheduling, OSDI 2022), Sarathi-Serve (chunked prefill, OSDI 2024), llama-server.

Not guaranteed: bit-identical logits for the same request in different company; kernels for batches of different shape
round differently, so a near-tie between two tokens may fall either way.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.embedding import EmbedWork
from node.engine.llama_work import Work
from node.engine.slots import Slot, choose
from node.engine.waiting import Entry, Waiting
from node.errors import KithError

#: Rows of a batch. Large enough for quick prefill, small enough that running generations do not stutter.
BATCH_TOKENS = 128

#: Requests that may wait for a slot. Threat: a queue without end, where every answer comes too late.
QUEUE_MAX = 128

#: llama_decode: no room in the KV cache; anything else but 0 is fatal.
_NO_ROOM = 1


class FatalDecodeError(Exception):
    """The context can not be used any more; the process has to end."""


@dataclass
class _Seat:
    """A slot and the work in it. `count` and `outputs` describe its rows in the current batch."""

    slot: Slot
    work: Work
    order: int
    count: int = 0
    outputs: int = 0


class LlamaLoop:
    """`add`, `wake` and `stats` are called from other threads; `run` is the owner of the context."""

    def __init__(self, context: llama.Context, slots: int, flush: Callable[[], None], adapters: Adapters) -> None:
        self._context = context
        self._adapters = adapters
        self._flush = flush
        self._changed = threading.Condition()
        self._waiting: Waiting[Work] = Waiting()  # guarded by _changed
        self._embeds: deque[EmbedWork] = deque()  # guarded by _changed; taken in turn, a batch a step
        self._slots = [Slot(i) for i in range(slots)]
        self._seats: dict[int, _Seat] = {}
        self._admissions = 0
        self._stats = engine_pb2.EngineStats()
        self._woken = False

    def add(self, work: Work) -> None:
        """Raises `KithError` (`busy`)."""
        with self._changed:
            self._check_room()
            command = work.request.command.generate  # of other kinds of work all its fields are 0
            useful = command.useful_seconds
            begin_by = work.queued_at + useful if useful > 0 else math.inf
            self._waiting.add(Entry(work, command.priority, command.owner, len(work.target), begin_by))
            self._changed.notify()

    def add_embed(self, work: EmbedWork) -> None:
        """Raises `KithError` (`busy`)."""
        with self._changed:
            self._check_room()
            self._embeds.append(work)
            self._changed.notify()

    def _check_room(self) -> None:
        if len(self._waiting) + len(self._embeds) >= QUEUE_MAX:
            raise KithError("busy", f"{QUEUE_MAX} requests already wait for this engine", "Try again later.")

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def stats(self) -> engine_pb2.EngineStats:
        """A copy of the figures; they may be one step old."""
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.slots_busy = len(self._seats)
        stats.queue_length = len(self._waiting) + len(self._embeds)
        return stats

    def run(self) -> None:
        """For ever. Raises `FatalDecodeError`."""
        while True:
            with self._changed:
                while not (self._waiting or self._embeds or self._seats or self._woken):
                    self._changed.wait()
                self._woken = False
            self.step()

    def step(self) -> None:
        """One round; public for measuring."""
        begun = time.monotonic()
        self._drop_cancelled()
        self._admit()
        if self._seats:
            self._fill_batch()
            self._decode()
        self._embed()
        self._flush()
        self._stats.steps += 1
        self._stats.busy_seconds += time.monotonic() - begun

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = self._waiting.drop(lambda work: work.request.cancelled)
            late = self._waiting.too_late(time.monotonic())
        for work in cancelled:
            work.cancel()
            work.close()
        for work in late:
            work.fail(KithError("too-late", "the request waited longer than it was useful", "Ask with more time."))
            work.close()
        for seat in [seat for seat in self._seats.values() if seat.work.request.cancelled]:
            seat.work.cancel()
            self._leave(seat)

    def _admit(self) -> None:
        while len(self._seats) < len(self._slots):
            with self._changed:
                work = self._waiting.take()
            if work is None:
                return
            free = [slot for slot in self._slots if slot.id not in self._seats]
            slot, common = choose(free, work.target, work.adapter)
            slot.adapter = work.adapter
            common = self._cut(slot, min(common, work.reuse_max))
            self._admissions += 1
            slot.last_used = self._admissions
            self._seats[slot.id] = _Seat(slot, work, self._admissions)
            work.began(common)

    def _cut(self, slot: Slot, length: int) -> int:
        """Shorten what a slot holds; returns what it holds then, 0 where its memory can not be cut."""
        if length < len(slot.held):
            kept = self._context.cut(slot.id, length)
            slot.held = slot.held[:length] if kept else []
        return len(slot.held)

    def _leave(self, seat: _Seat) -> None:
        seat.work.close()
        del self._seats[seat.slot.id]

    def _embed(self) -> None:
        """One batch of the first request for embeddings; the next request is next."""
        with self._changed:
            work = self._embeds.popleft() if self._embeds else None
        if work is None:
            return
        if work.request.cancelled:
            work.cancel()
        else:
            self._stats.prompt_tokens_processed += work.step()
        if not work.done:
            with self._changed:
                self._embeds.append(work)

    def _fill_batch(self) -> None:
        """Decide each seat's rows, then lay them down in the order of sequence ids."""
        room = self._context.batch_tokens
        adapter = self._adapters.turn(self._context, {seat.work.adapter for seat in self._seats.values()})
        for seat in sorted(self._seats.values(), key=lambda seat: (not seat.work.decoding, seat.order)):
            if seat.work.adapter != adapter:
                seat.count = 0
                continue
            seat.count = min(len(seat.work.target) - len(seat.slot.held), room)
            room -= seat.count
        self._context.clear_batch()
        for seat in self._seated():
            begin = len(seat.slot.held)
            outputs_from = max(0, seat.work.outputs_from - begin)
            seat.outputs = max(0, seat.count - outputs_from)
            rows = seat.work.target[begin : begin + seat.count]
            self._context.add(seat.slot.id, begin, rows, outputs_from)

    def _seated(self) -> list[_Seat]:
        """Seats with rows in the batch, in the batch's order."""
        return [seat for _, seat in sorted(self._seats.items()) if seat.count]

    def _decode(self) -> None:
        begun = time.monotonic()
        code = self._context.decode()
        if code == _NO_ROOM:
            self._make_room()
            return
        if code != 0:
            raise FatalDecodeError(f"llama_decode returned {code}")
        seconds = time.monotonic() - begun
        logits = self._context.logits()
        row = output = 0
        for seat in self._seated():
            work, begin = seat.work, len(seat.slot.held)
            seat.slot.held.extend(work.target[begin : begin + seat.count])
            if work.decoding:
                self._stats.tokens_generated += seat.count
            else:
                self._stats.prompt_tokens_processed += seat.count
            work.fed(seat.count, seconds)
            row += seat.count
            if seat.outputs:
                work.take(logits[output : output + seat.outputs], self._context, row - 1)
                output += seat.outputs
            if work.rewind is not None:
                self._cut(seat.slot, work.rewind)
                work.rewind = None
            if work.done:
                self._leave(seat)

    def _make_room(self) -> None:
        """The batch found no cells, and nothing was decoded: give up cached prefixes, else the newest work."""
        idle = [slot for slot in self._slots if slot.held and slot.id not in self._seats]
        if idle:
            for slot in idle:
                self._cut(slot, 0)
            return
        newest = max(self._seats.values(), key=lambda seat: seat.order)
        error = KithError("engine-failed", "the KV cache has no room for this request", "Use fewer --slots.")
        newest.work.request.put(engine_pb2.EngineEvent(problem=error.to_wire()), last=True)
        self._leave(newest)
        self._cut(newest.slot, 0)
