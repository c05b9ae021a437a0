"""What a grammar remembers of the texts it has followed: places, states, and what characters do to them. Bounded.

When the room is used up, all is forgotten and learned anew: what answers ask for now is soon known again, and what they
asked for once is gone. An answer that is on its way keeps its own state, which is renewed when it goes on: its stacks
are made once more among the new places. Nothing of what was forgotten is kept alive by it but these.

Not thread-safe but for reading `moves` and `allowed` of a state: whoever changes something holds the grammar's lock.

Source: lexers that build their automaton lazily forget so too (RE2, "flush the cache").
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What one grammar may remember, bytes as estimated below: places, states, what characters do to them, and lists of
#: tokens. Threat: a text that is new at every character, or nests without an end.
REMEMBERED_BYTES_MAX = 32 << 20
PLACE_BYTES, STATE_BYTES, MOVE_BYTES = 250, 300, 120


class FullError(Exception):
    """There is no room; nothing was added."""


class Place:
    """A node of the grammar on top of a stack of places: what comes here, and where it goes on after that.

    Invariant: of one generation there is one object for each content, but the end is the same in all.
    """

    __slots__ = ("node", "number", "rest")

    def __init__(self, node: int, rest: Optional["Place"], number: int) -> None:
        self.node = node
        self.rest = rest
        self.number = number


#: The text is complete.
END = Place(0, None, 0)

_number = attrgetter("number")


class State:
    """All ways in which the text so far can go on."""

    __slots__ = ("accepting", "allowed", "generation", "moves", "places", "renewed", "wide")

    def __init__(self, places: tuple[Place, ...], generation: int) -> None:
        self.places = places
        self.generation = generation
        self.renewed: State | None = None  # the same, of a later generation
        self.accepting = END in places
        self.moves: dict[str, State | None] = {}
        self.allowed: NDArray[np.int32] | None = None  # tokens that may come next; None: not worked out
        self.wide = False  # to work them out is known to take long


class Memory:
    """Invariant: `used_bytes` is the estimate for all that the tables below hold, at most `REMEMBERED_BYTES_MAX`."""

    def __init__(self) -> None:
        self.used_bytes = 0
        self._generation = 0
        self._places: dict[tuple[int, Place], Place] = {}
        self._states: dict[tuple[Place, ...], State] = {}

    def place(self, node: int, rest: Place) -> Place:
        """Raises `FullError`. `rest` is of this generation."""
        found = self._places.get((node, rest))
        if found is None:
            self._take(PLACE_BYTES)
            found = self._places[node, rest] = Place(node, rest, len(self._places) + 1)
        return found

    def state(self, places: Iterable[Place]) -> State:
        """Raises `FullError`. The places are of this generation."""
        key = tuple(sorted(places, key=_number))
        state = self._states.get(key)
        if state is None:
            self._take(STATE_BYTES + 8 * len(key))
            state = self._states[key] = State(key, self._generation)
        return state

    def moved(self, state: State, character: str, after: State | None) -> None:
        """Raises `FullError`. Both are of this generation."""
        self._take(MOVE_BYTES)
        state.moves[character] = after

    def keep(self, state: State, allowed: "NDArray[np.int32]") -> None:
        """Raises `FullError`. The state is of this generation."""
        if state.allowed is None:
            self._take(allowed.nbytes)
            state.allowed = allowed

    def renewed(self, state: State, spend: Callable[[int], None]) -> State:
        """The state as one of this generation. Raises `FullError`.

        Args:
            spend: hears how many places were made once more.
        """
        newest = state
        while newest.renewed is not None:
            newest = newest.renewed
        if newest.generation != self._generation:
            copies = {END: END}
            places = [self._copied(place, copies) for place in newest.places]
            spend(len(copies))
            newest = self.state(places)
        if newest is not state:
            state.renewed = newest
        return newest

    def forget(self) -> None:
        for state in self._states.values():  # an answer that holds one of them would keep all that follows it
            state.moves.clear()
            state.allowed = None
        self._states.clear()
        self._places.clear()
        self._generation += 1
        self.used_bytes = 0

    def _copied(self, place: Place, copies: dict[Place, Place]) -> Place:
        stack = []
        while place not in copies:
            stack.append(place)
            assert place.rest is not None
            place = place.rest
        made = copies[place]
        for one in reversed(stack):
            made = copies[one] = self.place(one.node, made)
        return made

    def _take(self, size: int) -> None:
        if self.used_bytes + size > REMEMBERED_BYTES_MAX:
            raise FullError
        self.used_bytes += size
