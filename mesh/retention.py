"""What may be forgotten: facts whose loss changes no reading, and then the blobs that nothing names any more.

Idea: every rule drops only what its fold does not read. The details of a closed job (its ends say all it reads as), a
profile or skill that a later one of its stream replaced, knowledge that a later word of its stream took back: where
a fork makes that word void, nothing that it could have dropped is read (library.py).

Each rule waits its time by the facts' own clocks, and by the wall clock only as far as the mesh's facts confirm it: a
node whose clock is years ahead forgets nothing early. Under disk pressure, and beyond what memory is given to them,
details go at once, those of the job that closed longest ago first.

Never: anything of an open job; the last fact of a stream (the next one names it); a fact of unknown kind. Nodes need
not forget at the same time: a retired range stands in the stream for what is gone (journal.py).

Does not: write to the disk (effects do). A job that an old release closed without a record keeps its details. An end of
a job may become void when the details are gone, and a word when the issuer of a denial had not heard it:
docs/guarantees.md says what is read then.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.effects import DropBlobs, Effect, RetireFacts
from mesh.facts import FactRange, Place
from mesh.journal import Journal, Position
from mesh.knowledge import Knowledge
from mesh.ledger import Job, Ledger
from mesh.profiles import Profiles

EVERY_S = 60.0
EVERY_UNDER_PRESSURE_S = 5.0
#: The share of the disk budget from which on there is pressure.
PRESSURE = 0.9
DETAILS_KEEP_S = 24 * 3600.0
#: Facts of closed jobs whose details are kept, about 3 KB of memory each: the last 150 jobs of seven tasks.
DETAILS_FACTS_MAX = 2_500
ENDS_KEEP_S = 365 * 24 * 3600.0
#: How far the wall clock is believed beyond the latest fact of another node.
CLOCK_BELIEVED_S = 2 * 24 * 3600.0
#: Blobs that were here at the start and that no fact named for so long since are nobody's.
ORPHANS_AFTER_S = 24 * 3600.0
#: Places of one pass, so that none takes long.
PLACES_MAX = 2_000


@dataclass
class Retention:
    journal: Journal
    ledger: Ledger
    knowledge: Knowledge
    profiles: Profiles
    pressed: bool = False
    blobs_at_start: set[bytes] = field(default_factory=set)
    #: Freed, and somebody counted on them: looked at again in the next pass.
    blobs_kept: set[bytes] = field(default_factory=set)
    _next_at: float = 0.0
    _next_ends_at: float = 0.0
    _started_at: float | None = None

    def disk_measured(self, used_bytes: int, budget_bytes: int) -> None:
        pressed = budget_bytes > 0 and used_bytes > PRESSURE * budget_bytes
        if pressed and not self.pressed:
            self._next_at = 0.0
        self.pressed = pressed

    def tick(self, now: float, wall_clock_ms: int, seen_hybrid_clock: int) -> list[Effect]:
        """`seen_hybrid_clock`: the highest of other nodes' facts; 0: none was ever seen."""
        if self._started_at is None:
            self._started_at = now
            self._next_at = now + EVERY_S
        if now < self._next_at or not wall_clock_ms:
            return []
        self._next_at = now + (EVERY_UNDER_PRESSURE_S if self.pressed else EVERY_S)
        now_ms = wall_clock_ms
        if seen_hybrid_clock:
            now_ms = min(now_ms, (seen_hybrid_clock >> 16) + int(CLOCK_BELIEVED_S * 1000))
        places: set[Place] = set()
        freed, self.blobs_kept = self.blobs_kept, set()
        self._retire_details(now_ms, places, freed)
        self._retire_replaced(now_ms, places, freed)
        if now >= self._next_ends_at:
            self._next_ends_at = now + 60 * EVERY_S
            self._retire_ends(now_ms, places, freed)
        if now >= self._started_at + ORPHANS_AFTER_S:
            freed |= self.blobs_at_start
            self.blobs_at_start = set()
        effects: list[Effect] = []
        if places:
            effects.append(RetireFacts(tuple(as_ranges(places))))
        unnamed = sorted(name for name in freed if not self.ledger.names(name) and not self.knowledge.names(name))
        if unnamed:
            effects.append(DropBlobs(tuple(unnamed)))
        return effects

    def _retire_details(self, now_ms: int, places: set[Place], freed: set[bytes]) -> None:
        due = [
            (_ended_ms(job), job)
            for job in self.ledger.closed_with_details()
            if job.request is not None and job.end is not None and job.end[1].record.HasField("request")
        ]
        due.sort(key=lambda entry: (entry[0], entry[1].job_id))
        too_many = sum(len(job.details_at) for _, job in due) - DETAILS_FACTS_MAX
        for ended_ms, job in due:
            wanted = self.pressed or too_many > 0 or now_ms >= ended_ms + DETAILS_KEEP_S * 1000
            if len(places) >= PLACES_MAX or not wanted:
                return
            too_many -= len(job.details_at)
            last = {place for place in job.details_at if self._is_last(place)}
            places |= job.details_at - last
            freed |= self.ledger.forget_details(job.job_id, keep=last)

    def _retire_replaced(self, now_ms: int, places: set[Place], freed: set[bytes]) -> None:
        for place in sorted(place for place in self.profiles.replaced if not self._is_last(place))[:PLACES_MAX]:
            self.profiles.replaced.discard(place)
            places.add(place)
        for item_id, ended_ms in self.knowledge.taken_back():
            if len(places) >= 2 * PLACES_MAX:
                return
            place = self.knowledge.added_at[item_id]
            if not self._is_last(place) and (self.pressed or now_ms >= ended_ms + DETAILS_KEEP_S * 1000):
                freed |= self.knowledge.forget(item_id)
                places.add(place)

    def _retire_ends(self, now_ms: int, places: set[Place], freed: set[bytes]) -> None:
        old = [
            job
            for job in self.ledger.jobs.values()
            if job.closed and not job.details_at and now_ms >= _ended_ms(job) + ENDS_KEEP_S * 1000
        ]
        for job in old[:PLACES_MAX]:
            if not any(self._is_last(place) for place in job.ends_at):
                places |= job.ends_at
                freed |= self.ledger.forget(job.job_id)

    def _is_last(self, place: Place) -> bool:
        """Also while facts after it are on their way to the disk: they might not get there."""
        return place.sequence >= self.journal.durable.get(place.stream_id, Position()).sequence


def as_ranges(places: Iterable[Place]) -> list[FactRange]:
    """Runs of neighbouring places, in order."""
    ranges: list[FactRange] = []
    for place in sorted(places):
        last = ranges[-1] if ranges else None
        if last is not None and (last.stream_id, last.last + 1) == place:
            ranges[-1] = FactRange(last.stream_id, last.first, place.sequence)
        else:
            ranges.append(FactRange(place.stream_id, place.sequence, place.sequence))
    return ranges


def _ended_ms(job: Job) -> int:
    return job.end[0].time_ms if job.end is not None else 0
