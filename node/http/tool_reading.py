"""Finds the calls of tools in what a model writes, while it writes it.

Idea: text flows through; what may be the beginning of a call is held back until it is one, or is not. Known formats:

    Hermes, Qwen     <tool_call>{"name": …, "arguments": {…}}</tool_call>, after text or not, several
    Llama 3          the whole answer is {"name": …, "parameters": {…}}, after <|python_tag|> or not, several with `;`
    Mistral          [TOOL_CALLS][{"name": …, "arguments": {…}}, …]; or the list alone, where the mark is a token
                     without text, as llama.cpp has it
    forced           the whole answer is {"name": …, "arguments": {…}}: a grammar saw to it

Not guaranteed: a call that is cut off, is no JSON, or names a tool that nobody offered is text: it is given out as the
model wrote it, never dropped.
"""

import json
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"
#: What an answer begins with that is calls as a whole.
WHOLE = ("<|python_tag|>", "[TOOL_CALLS]")
#: Or with an object, or a list of such.
_OBJECTS = re.compile(r"\[?\s*\{")
#: Letters and digits of an id: Mistral's chat templates take no other.
ID_LENGTH = 9
_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Call:
    """A call that a model asks for."""

    name: str
    arguments: str  # JSON text of an object
    id: str = field(default_factory=lambda: "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH)))


class ToolReader:
    """Reads one answer.

    Args:
        names: of the tools that were offered.
        forced: the whole answer is one call.
        parallel: whether more than the first call counts.
    """

    def __init__(self, names: frozenset[str], *, forced: bool = False, parallel: bool = True) -> None:
        self._names = names
        self._parallel = parallel
        self._held = ""
        self._opened = ""  # the mark of the call that is read, with the white space before it
        #: "start": nothing but white space came; "text"; "call": within <tool_call>; "whole": all of it may be calls.
        self._state = "whole" if forced else "start"
        self.calls = 0

    def feed(self, text: str) -> list[str | Call]:
        """What is certain by now, in order."""
        self._held += text
        found: list[str | Call] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[str | Call]:
        """What was held back at the end of the answer."""
        found: list[str | Call] = []
        held, self._held = self._held, ""
        if self._state == "whole":
            self._add(found, _calls_in(_without_marks(held), self._names), held)
        elif self._state == "call":
            self._add(found, _calls_in(held, self._names), self._opened + held)
        elif held.strip() or not self.calls:
            found.append(held)
        return [one for one in found if one]

    def _step(self, found: list[str | Call]) -> bool:
        """One transition; whether there may be another."""
        match self._state:
            case "start":
                begun = self._held.lstrip()
                if not begun.removeprefix("[").strip() or any(mark.startswith(begun) for mark in WHOLE):
                    return False
                self._state = "whole" if begun.startswith(WHOLE) or _OBJECTS.match(begun) else "text"
                return True
            case "text":
                before, mark, after = self._held.partition(OPENING)
                if mark:
                    said = before.rstrip()
                    self._say(found, said)
                    self._opened = before[len(said) :] + mark
                    self._held, self._state = after, "call"
                    return True
                kept = _unsure(self._held)
                self._say(found, self._held[: len(self._held) - kept])
                self._held = self._held[len(self._held) - kept :]
                return False
            case "call":
                inside, mark, after = self._held.partition(CLOSING)
                if not mark:
                    return False
                self._add(found, _calls_in(inside, self._names), self._opened + inside + mark)
                self._held, self._state = after, "text"
                return True
        return False

    def _add(self, found: list[str | Call], calls: list[Call], written: str) -> None:
        if not calls:
            self._say(found, written)
        for call in calls:
            if self._parallel or not self.calls:
                found.append(call)
                self.calls += 1

    def _say(self, found: list[str | Call], text: str) -> None:
        if text and not (self.calls and not text.strip()):
            found.append(text)


def _unsure(text: str) -> int:
    """Characters at the end that may belong to a call: the beginning of a mark, and white space before it."""
    most = min(len(OPENING) - 1, len(text))
    begun = next((size for size in range(most, 0, -1) if OPENING.startswith(text[-size:])), 0)
    rest = text[: len(text) - begun]
    return begun + len(rest) - len(rest.rstrip())


def _without_marks(text: str) -> str:
    text = text.strip()
    for mark in WHOLE:
        text = text.removeprefix(mark)
    return text


def _calls_in(text: str, names: frozenset[str]) -> list[Call]:
    """All calls in a text that holds nothing else; empty where anything in it is none."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    rest = text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    calls = [_call_of(value, names) for value in values]
    return [call for call in calls if call is not None] if None not in calls else []


def _call_of(value: Any, names: frozenset[str]) -> Call | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: no JSON that a client could read; too deep
        return None
    return Call(value["name"], written)
