"""Continuous batching: one thread owns the context and turns, step by step, many requests into shared batches.

A step: take in what waits, drop what was cancelled, then fill one batch: a row for every sequence that is generating,
and what is left of the batch for prompts, in order of admission. Decode, let each work look at its logits, send all
events of the step in one write. Rows are sorted by sequence id, which the split KV cache needs to keep a batch whole.

A request whose prompt begins like one that is being read waits for it, up to where the two differ, and then copies: of
many requests with the same beginning that come at once, one reads it. What one request reads after its own prompt in
several ways (the options of a scoring) shares a step too, in spare sequences, where the cache is one pool of cells.

An error in what belongs to one request (its sampler, grammar, sums) ends that request; one of the context or of what is
known about it ends the process.

Sources: Orca (iteration-level scheduling, OSDI 2022), Sarathi-Serve (chunked prefill, OSDI 2024), llama-server.

Not guaranteed: bit-identical logits for the same request in different company; kernels for batches of different shape
round differently, so a near-tie between two tokens may fall either way.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.wire import engine_pb2
from node.engine import llama
from node.engine.adapters import Adapters
from node.engine.backend import guarded, queue_full, too_late
from node.engine.embed_turns import EmbedTurns
from node.engine.embedding import VectorWork
from node.engine.kv_cache import COPY_TOKENS_MIN, KvCache, Slot
from node.engine.kv_changing import KvChanging
from node.engine.llama_opening import FatalDecodeError
from node.engine.llama_work import Work
from node.engine.radix import common_prefix
from node.engine.waiting import Entry, Waiting
from node.errors import KithError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Rows of a batch. Large enough for quick prefill, small enough that running generations do not stutter.
BATCH_TOKENS = 128

#: Requests that may wait for a slot. Threat: a queue without end, where every answer comes too late.
QUEUE_MAX = 128

#: llama_decode: no room in the KV cache; anything else but 0 is fatal.
_NO_ROOM = 1


@dataclass(eq=False)
class _Seat:
    """A work that was admitted. `count` and `outputs` describe its rows in the current batch."""

    work: Work
    order: int  # of admission
    slot: Slot | None = None  # None: it waits for what another one is reading
    joins: "_Seat | None" = None  # that one
    joins_at: int = 0  # tokens of the other's target that this one wants
    count: int = 0
    outputs: int = 0

    @property
    def missing(self) -> int:
        """Tokens of the target that its slot does not hold; 0 without a slot."""
        return 0 if self.slot is None else len(self.work.target) - len(self.slot.held)


@dataclass(frozen=True)
class _Branch:
    """What the current batch reads after a seat's prompt, in a spare sequence."""

    seat: _Seat
    number: int  # the work's
    sequence: int
    tokens: Sequence[int]


class LlamaLoop:
    """`add`, `wake` and `stats` are called from other threads; `run` is the owner of the context."""

    def __init__(
        self,
        context: llama.Context,
        slots: int,
        flush: Callable[[], None],
        adapters: Adapters,
        spill_bytes: int = 0,
        kv_token_bytes: int = 0,
    ) -> None:
        """`kv_token_bytes`: what a token takes in a sequence's state. 0: the context does not change its kind."""
        self._context = context
        self._adapters = adapters
        self._cache = KvCache(context, slots, spill_bytes)
        self.changing = KvChanging(context, self._cache, adapters, kv_token_bytes) if kv_token_bytes else None
        self._flush = flush
        self._changed = threading.Condition()
        self._waiting: Waiting[Work] = Waiting()  # guarded by _changed
        self._embeds = EmbedTurns(self._changed)
        self._calls: list[Callable[[KvCache], None]] = []  # guarded by _changed
        self._slots = slots
        self._seats: list[_Seat] = []  # in order of admission
        self._branches: list[_Branch] = []  # of the current batch, in the order of their sequences
        self._in_hand = 0  # calls that this step is at
        self._admissions = 0
        self._stats = engine_pb2.EngineStats()
        self._woken = False

    def add(self, work: Work) -> None:
        """Raises `KithError` (`busy`)."""
        with self._changed:
            self._check_room()
            self._waiting.add(Entry.of(work, work.request.asked, work.cost, work.queued_at))
            self._changed.notify()

    def add_embed(self, work: VectorWork) -> None:
        """Raises `KithError` (`busy`)."""
        with self._changed:
            self._check_room()
            self._embeds.add(work)
            self._changed.notify()

    def _check_room(self) -> None:
        if len(self._waiting) + len(self._embeds) >= QUEUE_MAX:
            raise queue_full(QUEUE_MAX)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def call(self, what: Callable[[KvCache], None]) -> None:
        """Have the owner of the cache do something between two steps, soon."""
        with self._changed:
            self._calls.append(what)
            self._changed.notify()

    def stats(self) -> engine_pb2.EngineStats:
        """A copy of the figures; they may be one step old."""
        stats = engine_pb2.EngineStats()
        stats.CopyFrom(self._stats)
        stats.slots_busy = len(self._seats)
        stats.queue_length = len(self._waiting) + len(self._embeds) + len(self._calls) + self._in_hand
        return stats

    def run(self) -> None:
        """For ever. Raises `FatalDecodeError`."""
        while True:
            with self._changed:
                while not (self._waiting or self._embeds or self._seats or self._calls or self._woken):
                    self._changed.wait()
                self._woken = False
            self.step()

    def step(self) -> None:
        """One round; public for measuring."""
        begun = time.monotonic()
        self._drop_cancelled()
        self._answer_calls()
        if self.changing is not None:
            self.changing.step([seat.slot for seat in self._seats if seat.slot is not None])
        self._admit()
        if self.changing is not None:
            self.changing.look()
        if self._seats:
            self._begin_joined()
            self._fill_batch()
            self._decode()
        self._stats.prompt_tokens_processed += self._embeds.step()
        self._flush()
        self._stats.steps += 1
        self._stats.busy_seconds += time.monotonic() - begun

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = self._waiting.drop(lambda work: work.request.cancelled)
            late = self._waiting.too_late(time.monotonic())
        for work in cancelled:
            guarded(work, work.cancel)
            guarded(work, work.close)
        for work in late:
            work.fail(too_late())
            guarded(work, work.close)
        for seat in [seat for seat in self._seats if seat.work.request.cancelled]:
            guarded(seat.work, seat.work.cancel)
            self._leave(seat)

    def _answer_calls(self) -> None:
        with self._changed:
            calls, self._calls = self._calls, []
            self._in_hand = len(calls)
        for call in calls:
            call(self._cache)
            self._in_hand -= 1

    def _admit(self) -> None:
        while len(self._seats) < self._slots:
            with self._changed:
                work = self._waiting.take()
            if work is None:
                return
            self._admissions += 1
            seat = _Seat(work, self._admissions)
            self._join(seat)
            self._seats.append(seat)
            if self.changing is not None:
                self.changing.came(seat.order, work.target[: work.prompt_tokens], work.adapter)
            if seat.joins is None:
                self._begin(seat)

    def _join(self, seat: _Seat, reading: bool = False) -> None:
        """Wait for another one, where it is about to read more of this prompt than can be had now.

        Args:
            reading: only for one that has begun: among those that wait, two could wait for each other.
        """
        if not self._context.divisible or not self._seats:
            return
        adapter, prompt = seat.work.adapter, seat.work.target[: seat.work.reuse_max]
        alike = [one for one in self._seats if one.work.adapter == adapter and one is not seat]
        if reading:
            alike = [one for one in alike if one.slot is not None]
        # What a scoring reads beyond its prompt, it takes back.
        length, other = max(
            ((common_prefix(one.work.target[: one.work.prompt_tokens], prompt), one) for one in alike),
            key=lambda pair: (pair[0], -pair[1].order),
            default=(0, None),
        )
        if other is not None and length >= self._cache.reach(prompt, adapter) + COPY_TOKENS_MIN:
            seat.joins, seat.joins_at = other, length

    def _begin(self, seat: _Seat) -> None:
        work = seat.work
        seat.joins = None
        seat.slot, common = self._cache.open(work.target[: work.reuse_max], work.adapter)
        self._stats.cached_tokens += common
        guarded(work, work.began, common)
        if work.done:
            self._leave(seat)

    def _begin_joined(self) -> None:
        """Those whose wait is over: the other has read what they want, or is gone."""
        for seat in list(self._seats):
            other = seat.joins
            if other is not None:
                gone = other.work.done or other not in self._seats
                if gone:
                    seat.joins = None
                    self._join(seat, reading=True)
                    if seat.joins is None:
                        self._begin(seat)
                elif other.slot is not None and len(other.slot.held) >= seat.joins_at:
                    self._begin(seat)

    def _leave(self, seat: _Seat) -> None:
        guarded(seat.work, seat.work.close)
        self._seats.remove(seat)
        if self.changing is not None:
            self.changing.went(seat.order)
        if seat.slot is not None:
            self._cache.close(seat.slot)

    def _fill_batch(self) -> None:
        """Decide each seat's rows, then lay them down in the order of sequence ids.

        Who needs a single row gets it, before those who read take the rest: a writer whose cells were lost reads too.
        """
        room = self._context.batch_tokens
        adapter = self._adapters.turn(self._context, {seat.work.adapter for seat in self._seats})
        for seat in sorted(self._seats, key=lambda seat: (seat.missing > 1, seat.order)):
            seat.count = min(seat.missing, room) if seat.work.adapter == adapter else 0
            room -= seat.count
        self._branches = self._chosen_branches(room)
        room -= sum(len(branch.tokens) for branch in self._branches)
        self._adapters.filled(self._context.batch_tokens - room)
        self._context.clear_batch()
        for slot, seat in self._seated():
            begin = len(slot.held)
            outputs_from = max(0, seat.work.outputs_from - begin)
            seat.outputs = max(0, seat.count - outputs_from)
            rows = seat.work.target[begin : begin + seat.count]
            self._context.add(slot.id, begin, rows, outputs_from)
        for branch in self._branches:
            seat = branch.seat
            assert seat.slot is not None
            self._context.share(seat.slot.id, branch.sequence, seat.work.prompt_tokens)
            self._context.add(branch.sequence, seat.work.prompt_tokens, branch.tokens, 0)

    def _chosen_branches(self, room: int) -> list[_Branch]:
        """Branches for what is left of the batch, the pool's cells and the spare sequences."""
        planned = sum(len(slot.held) for slot in self._cache.slots) + sum(seat.count for seat in self._seats)
        room = min(room, self._context.context_tokens * self._slots - planned)
        spare = iter(self._context.spare)
        chosen: list[_Branch] = []
        for slot, seat in self._seated():
            if len(slot.held) < seat.work.prompt_tokens:
                continue
            for number, tokens in seat.work.branches():
                if len(tokens) <= room:
                    if (sequence := next(spare, None)) is None:
                        return chosen
                    chosen.append(_Branch(seat, number, sequence, tokens))
                    room -= len(tokens)
        return chosen

    def _seated(self) -> list[tuple[Slot, _Seat]]:
        """Seats with rows in the batch, in the batch's order."""
        seated = [(seat.slot, seat) for seat in self._seats if seat.slot is not None and seat.count]
        return sorted(seated, key=lambda pair: pair[0].id)

    def _decode(self) -> None:
        self._cache.forget_copy()
        begun = time.monotonic()
        code = self._context.decode()
        for branch in self._branches:
            self._context.cut(branch.sequence, 0)
        if code == _NO_ROOM:
            self._make_room()
            return
        if code != 0:
            raise FatalDecodeError(f"llama_decode returned {code}")
        seconds = time.monotonic() - begun
        logits = self._context.logits()
        row = output = 0
        seated = self._seated()
        self._take_branches(logits[sum(seat.outputs for _, seat in seated) :])
        for slot, seat in seated:
            work, begin = seat.work, len(slot.held)
            slot.held.extend(work.target[begin : begin + seat.count])
            if work.decoding:
                self._stats.tokens_generated += seat.outputs  # more rows: what could not be put back
            else:
                self._stats.prompt_tokens_processed += seat.count
                if seat.count > 1 and len(seated) == 1 and not self._branches:
                    self._cache.measured_reading(seat.count, seconds)
            guarded(work, work.fed, seat.count, seconds)
            row += seat.count
            if seat.outputs:
                if not work.done:
                    guarded(work, work.take, logits[output : output + seat.outputs], self._context, row - 1)
                output += seat.outputs
            if work.rewind is not None and not work.done:
                self._cache.cut(slot, work.rewind)
                work.rewind = None
            if work.done:
                self._leave(seat)

    def _take_branches(self, logits: "NDArray[np.float32]") -> None:
        """Args: `logits`: those after the rows of the seats' own sequences."""
        output = 0
        for branch in self._branches:
            work, count = branch.seat.work, len(branch.tokens)
            if not work.done:
                guarded(work, work.take_branch, branch.number, logits[output : output + count])
            self._stats.prompt_tokens_processed += count
            output += count

    def _make_room(self) -> None:
        """The batch found no cells, and nothing was decoded: give up cached prefixes, else the newest work."""
        if self._cache.drop_idle():
            return
        newest = max((seat for seat in self._seats if seat.slot is not None), key=lambda seat: seat.order)
        error = KithError("engine-failed", "the KV cache has no room for this request", "Use fewer --slots.")
        newest.work.request.put(engine_pb2.EngineEvent(problem=error.to_wire()), last=True)
        assert newest.slot is not None
        self._cache.cut(newest.slot, 0)
        self._leave(newest)
