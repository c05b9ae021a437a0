"""What a person sees: clean text, tables, colours where they are wanted, JSON where it is asked for.

Idea: results go to standard output, progress and errors to standard error, so that a pipe gets the result alone. Text
that came from other nodes or from a model passes through `clean` first: a node's name must not be able to move the
cursor or to retitle the window of whoever lists it. Colours only on a terminal and never with NO_COLOR. Rich is
imported where a table or a live view is drawn, never before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from node.errors import KithError

#: Width of output that no terminal limits, columns.
PLAIN_WIDTH = 500
#: What a cell that gives way keeps at least, columns.
NARROW_CELL = 12
#: Columns between two cells.
GAP = 2


def clean(text: str) -> str:
    """`text` without control characters (terminal escapes, bidirectional overrides); line ends and tabs stay."""
    return text if text.isprintable() else "".join(map(_shown, text.replace("\r\n", "\n")))


def _shown(character: str) -> str:
    # The joiners are part of words in Persian and Hindi, U+3000 is the space of CJK text.
    if character.isprintable() or character in "\n\t\u200c\u200d\u3000":
        return character
    return " " if character.isspace() and character > " " else "\N{REPLACEMENT CHARACTER}"


def one_line(text: str, length: int = 0) -> str:
    """`text` on one line, cut to `length` characters where given."""
    line = " ".join(clean(text).split())
    return line if not length or len(line) <= length else line[: length - 1].rstrip() + "…"


def wants_colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, code: str, stream: IO[str] | None = None) -> str:
    """`text` in an ANSI style (`1` bold, `2` dim, `31` red, …) where the stream shows it."""
    return f"\x1b[{code}m{text}\x1b[0m" if wants_colour(stream or sys.stdout) else text


def bold(text: str) -> str:
    return styled(text, "1")


def dim(text: str) -> str:
    return styled(text, "2")


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(value, ensure_ascii=False))


def emit_error(error: KithError, as_json: bool) -> None:
    if as_json:
        emit({"error": {"code": error.code, "message": error.message, "remedy": error.remedy}})
        return
    sys.stdout.flush()
    print(f"{styled('kith:', '1;31', sys.stderr)} {one_line(error.message)}", file=sys.stderr)
    if error.remedy:
        print(f"  → {one_line(error.remedy)}", file=sys.stderr)


def note(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def console(stream: IO[str] | None = None) -> Console:
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    colours: Literal["auto"] | None = "auto" if wants_colour(stream) else None  # None: no bold and dim either
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, color_system=colours)


@dataclass(frozen=True)
class Column:
    """`narrow` says what gives way where the terminal is too narrow: nothing ("keep": what people copy is in one
    piece), the end of each cell and at last the whole column ("crop"), one line a cell ("fold"), or the whole column
    ("drop")."""

    header: str
    narrow: str = "keep"
    number: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns. Without a terminal nothing is cut and nothing is left out."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[one_line(cell) for cell in row] for row in rows]
    natural = [max(map(cell_len, column)) for column in zip([c.header for c in columns], *cells, strict=True)]
    view = console()
    on_terminal = sys.stdout.isatty()
    widths = _fit(columns, natural, view.width) if on_terminal else dict(enumerate(natural))
    view.width = max(view.width, _width(widths))  # where too little gave way the terminal wraps the lines
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index, width in widths.items():
        column = columns[index]
        crop = column.narrow == "crop"
        grid.add_column(
            column.header,
            justify="right" if column.number else "left",
            no_wrap=crop,
            overflow="ellipsis" if crop else "fold",
            width=width,
        )
    for row in cells:
        grid.add_row(*(Text(row[index]) for index in widths))
    if on_terminal:
        view.print(grid, crop=False)
        return
    with view.capture() as capture:
        view.print(grid)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _fit(columns: Sequence[Column], natural: Sequence[int], width: int) -> dict[int, int]:
    """The columns that are shown on `width` terminal columns, and how wide each is."""
    shown = dict(enumerate(natural))

    def excess() -> int:
        return _width(shown) - width

    def slack() -> int:
        return sum(max(0, w - NARROW_CELL) for i, w in shown.items() if columns[i].narrow in ("crop", "fold"))

    for index in reversed(range(len(columns))):
        if columns[index].narrow == "drop" and excess() > slack():
            del shown[index]
    while excess() > 0:
        giving = [i for i, w in shown.items() if columns[i].narrow in ("crop", "fold") and w > NARROW_CELL]
        cropped = [i for i in shown if columns[i].narrow == "crop" and i]
        if giving:
            shown[max(giving, key=lambda i: shown[i])] -= 1
        elif cropped:
            del shown[cropped[-1]]
        else:
            break
    return shown


def _width(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def wrapped(text: str, indent: str = "", first: str | None = None) -> str:
    """Paragraphs folded to the terminal, with wide characters counted as two columns; unfolded without one."""
    first = indent if first is None else first
    if not sys.stdout.isatty():
        return first + text.replace("\n", "\n" + indent)
    from rich.text import Text

    view = console()
    lines = Text(text).wrap(view, max(20, view.width - len(indent)))
    return "\n".join((first if i == 0 else indent) + line.plain.rstrip() for i, line in enumerate(lines))


def seconds(value: float) -> str:
    """A duration for people: 0.42 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    for size, name, lower, lower_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // lower
            return f"{whole // size} {name}" + (f" {rest} {lower_name}" if rest else "")
    raise AssertionError(whole)


def size(count: int) -> str:
    """Bytes for people, in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rate(value: float) -> str:
    """Tokens a second, or a dash where not measured."""
    return "–" if value <= 0 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
