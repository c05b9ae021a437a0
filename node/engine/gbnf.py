"""GBNF, llama.cpp's notation for grammars, read into rules.

Grammars come with requests, so from strangers, and llama.cpp's own reader recurses without bounds, follows a chain of
rules an exponential number of times, and lets some left recursion pass that then never ends. So this one reads them:
in pure Python, with a limit on everything. What is read is the same notation (literals, classes, `.`, groups, `|`, `*`,
`+`, `?`, `{m,n}`, comments), without token literals (`<...>`).

Source: grammars/README.md of llama.cpp.
"""

import bisect
from dataclasses import dataclass
from typing import NoReturn

from node.errors import ExitCode, KithError
from node.limits import GRAMMAR_CHARACTERS_MAX

#: Elements of all rules, repetitions written out. Threat: `{2000}` of `{2000}` in twenty characters.
ELEMENTS_MAX = 20_000
REPEAT_MAX = 2000
NESTING_MAX = 64

LAST_CODE_POINT = 0x10FFFF

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ESCAPED = frozenset('\\"[]-^/')


@dataclass(frozen=True)
class Characters:
    """A set of characters as inclusive, ascending, disjoint ranges of code points."""

    ranges: tuple[tuple[int, int], ...]  # disjoint, in order

    def has(self, code_point: int) -> bool:
        at = bisect.bisect_right(self.ranges, (code_point, LAST_CODE_POINT)) - 1
        return at >= 0 and code_point <= self.ranges[at][1]

    def meets(self, low: int, high: int) -> bool:
        """Is any code point from `low` to `high` in the set?"""
        return any(one <= high and low <= other for one, other in self.ranges)


#: A set of characters, or the number of a rule.
Element = Characters | int
Alternative = tuple[Element, ...]

_ANY = Characters(((0, LAST_CODE_POINT),))


def bad_grammar(reason: str) -> KithError:
    return KithError("bad-grammar", f"the grammar can not be used: {reason}", "Simplify it.", ExitCode.BAD_INPUT)


def read(text: str, root: str = "root") -> tuple[list[list[Alternative]], int]:
    """The alternatives of every rule, and the number of the root's. Raises `KithError` (`bad-grammar`)."""
    if len(text) > GRAMMAR_CHARACTERS_MAX:
        raise bad_grammar(f"it has {len(text):,} characters, and {GRAMMAR_CHARACTERS_MAX:,} are the limit")
    reader = _Reader(text)
    reader.read()
    missing = [name for name, number in reader.numbers.items() if number not in reader.rules]
    if missing:
        raise bad_grammar(f"the rule {missing[0][:60]!r} is not defined")
    if root not in reader.numbers:
        raise bad_grammar(f"it has no rule {root!r}")
    return [reader.rules[number] for number in range(reader.count)], reader.numbers[root]


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text + "\0"  # a sentinel that no rule matches
        self._end = len(text)
        self._at = 0
        self._elements = 0
        self.numbers: dict[str, int] = {}  # of rules with a name
        self.rules: dict[int, list[Alternative]] = {}
        self.count = 0

    def read(self) -> None:
        self._space(newlines=True)
        while self._at < self._end:
            name = self._name()
            self._space(newlines=False)
            if not self._text.startswith("::=", self._at):
                self._fail("'::=' is missing")
            self._at += 3
            self._space(newlines=True)
            number = self._number(name)
            if number in self.rules:
                self._fail(f"the rule {name[:60]!r} is there twice")
            self.rules[number] = self._alternatives(0)
            if self._at < self._end and self._text[self._at] not in "\r\n":
                self._fail("a rule does not end where its line ends")
            self._space(newlines=True)

    def _alternatives(self, depth: int) -> list[Alternative]:
        if depth > NESTING_MAX:
            self._fail(f"groups are nested deeper than {NESTING_MAX}")
        alternatives = [self._sequence(depth)]
        while self._text[self._at] == "|":
            self._at += 1
            self._space(newlines=True)
            alternatives.append(self._sequence(depth))
        return alternatives

    def _sequence(self, depth: int) -> Alternative:
        done: list[Element] = []
        last: list[Element] | None = None  # what a repetition mark would repeat
        while True:
            mark = self._text[self._at]
            if mark in "*+?{":
                if last is None:
                    self._fail("there is nothing to repeat")
                low, high = self._bounds()
                last = self._repeated(last, low, high)
                self._space(newlines=depth > 0)
                continue
            if last is not None:
                done += last
            if mark == '"':
                last = self._literal()
            elif mark == "[":
                last = [self._class()]
            elif mark == ".":
                self._at += 1
                last = [_ANY]
            elif mark == "(":
                self._at += 1
                self._space(newlines=True)
                inner = self._alternatives(depth + 1)
                if self._text[self._at] != ")":
                    self._fail("a ')' is missing")
                self._at += 1
                last = [self._rule(inner)]
            elif mark in _WORD:
                last = [self._number(self._name())]
            else:
                return tuple(done)
            self._count(len(last))
            self._space(newlines=depth > 0)

    def _repeated(self, what: list[Element], low: int, high: int | None) -> list[Element]:
        """x{2,4} → x x (x (x)?)?, x{2,} → x x more, more ::= x more | nothing."""
        if len(what) > 1 and (low > 1 or high is None or high > 1):
            what = [self._rule([tuple(what)])]
        self._count(len(what) * (low + (1 if high is None else high - low)))
        more: list[Element] = []
        if high is None:
            number = self._reserve()
            self.rules[number] = [(*what, number), ()]
            more = [number]
        else:
            for _ in range(high - low):
                more = [self._rule([(*what, *more), ()])]
        return what * low + more

    def _bounds(self) -> tuple[int, int | None]:
        mark = self._text[self._at]
        self._at += 1
        if mark != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at : end].partition(",")
        low, high = low.strip(), high.strip()
        if not 0 <= end - self._at <= 20 or not _whole(low) or (high and not _whole(high)):
            self._fail("a repetition is not of the form {m}, {m,} or {m,n}")
        self._at = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if least > REPEAT_MAX or (most is not None and not least <= most <= REPEAT_MAX):
            self._fail(f"a repetition is not within 0 and {REPEAT_MAX}")
        return least, most

    def _literal(self) -> list[Element]:
        self._at += 1
        found: list[Element] = []
        while self._text[self._at] != '"':
            code_point = self._character()
            found.append(Characters(((code_point, code_point),)))
        self._at += 1
        return found

    def _class(self) -> Characters:
        self._at += 1
        inverted = self._text[self._at] == "^"
        self._at += inverted
        ranges = []
        while self._text[self._at] != "]":
            low = high = self._character()
            if self._text[self._at] == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                high = self._character()
            if low > high:
                self._fail("a range of characters runs backwards")
            ranges.append((low, high))
        self._at += 1
        return Characters(_disjoint(ranges, inverted))

    def _character(self) -> int:
        if self._at >= self._end:
            self._fail("it ends inside a literal or class")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return ord(character)
        kind = self._text[self._at]
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind in _ESCAPED:
            return ord(kind)
        digits = self._text[self._at : self._at + _HEX_DIGITS.get(kind, 0)]
        try:
            code_point = int(digits, 16) if len(digits) == _HEX_DIGITS.get(kind) and digits.isalnum() else -1
        except ValueError:
            code_point = -1
        if not 0 <= code_point <= LAST_CODE_POINT:
            self._fail("an escape is not known")
        self._at += len(digits)
        return code_point

    def _name(self) -> str:
        begin = self._at
        while self._text[self._at] in _WORD:
            self._at += 1
        if begin == self._at:
            self._fail("the name of a rule is missing")
        return self._text[begin : self._at]

    def _space(self, newlines: bool) -> None:
        blanks = " \t\r\n" if newlines else " \t"
        while True:
            if self._text[self._at] == "#":
                while self._at < self._end and self._text[self._at] not in "\r\n":
                    self._at += 1
            elif self._text[self._at] in blanks:
                self._at += 1
            else:
                return

    def _number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = self._reserve()
        return self.numbers[name]

    def _rule(self, alternatives: list[Alternative]) -> int:
        number = self._reserve()
        self.rules[number] = alternatives
        return number

    def _reserve(self) -> int:
        self._count(1)
        self.count += 1
        return self.count - 1

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > ELEMENTS_MAX:
            self._fail(f"written out it has more than {ELEMENTS_MAX:,} elements")

    def _fail(self, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        raise bad_grammar(f"{reason} (line {line})")


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _disjoint(ranges: list[tuple[int, int]], inverted: bool) -> tuple[tuple[int, int], ...]:
    """Sorted and merged; the complement where `inverted`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    if not inverted:
        return tuple(merged)
    edges = [-1, *(edge for pair in merged for edge in pair), LAST_CODE_POINT + 1]
    gaps = [(edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges), 2)]
    return tuple((low, high) for low, high in gaps if low <= high)
