"""From token bytes to text that may be shown: whole UTF-8 characters only, and never past a stop string.

A tokenizer splits characters and stop strings where it likes. So bytes wait until their character is complete, and
text waits as long as it could still turn out to be the beginning of a stop string.
"""

import codecs
from collections.abc import Sequence

#: Limits on what a request may name. Threat: a search over megabytes of stop strings at every token.
STOPS_MAX = 16
STOP_CHARACTERS_MAX = 256


class TextStream:
    """Invariant: the texts returned so far, joined, never hold a stop string nor a replacement for half a character
    at their end."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        assert len(stops) <= STOPS_MAX
        assert all(0 < len(stop) <= STOP_CHARACTERS_MAX for stop in stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._shown = 0  # characters at the beginning of `_held` that the reader already has
        self.stopped = False

    def resume(self, text: str) -> None:
        """Go on after a text that was shown in full."""
        self.feed(text.encode("utf-8", "replace"))
        self._shown = len(self._held)

    def feed(self, piece: bytes) -> str:
        """The text that this piece makes showable; sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(piece)
        if not self._stops:
            return text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            # What is complete first counts, of two the longer one: however tokens cut the text, it ends in one place.
            self.stopped = True
            self._held = ""
            return text[self._shown : min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        showable = len(text) - keep
        shown, self._shown = self._shown, max(0, self._shown - showable)
        self._held = text[showable:]
        return text[shown:showable]

    def finish(self) -> str:
        """What was held back for a stop string that did not come. Half a character at the end is dropped."""
        held, self._held = self._held[self._shown :], ""
        return "" if self.stopped else held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that are a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
