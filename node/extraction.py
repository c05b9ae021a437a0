"""The text inside HTML and PDF, as blocks that the summariser understands.

The idea: HTML becomes Markdown blocks (headings, paragraphs, list items, code, tables of short cells); what is not read
on a page (scripts, navigation, forms) is dropped. PDF becomes the text of its pages, with wrapped lines joined and
hyphens at line ends mended.
Not guaranteed: the right order in a PDF with columns, footnotes or boxes; text in pictures; text that a page's scripts
write. Malformed files raise `Unreadable`, whatever the library raised; the libraries' warnings go nowhere.
Limits: NODES_MAX and PDF_PAGES_MAX. Threat: a file made to be slow.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import pypdf
from selectolax.lexbor import LexborHTMLParser, LexborNode

NODES_MAX = 2_000_000
PDF_PAGES_MAX = 5_000
#: A table with a longer cell is there for the layout of the page: its cells are read as paragraphs.
_CELL_CHARS_MAX = 120

_DROPPED = (
    "script", "style", "nav", "noscript", "template", "svg", "math", "iframe", "object", "form", "button", "select",
    "textarea", "footer", "aside", "dialog",
)  # fmt: skip
_INLINE = frozenset(
    (
        "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins",
        "kbd", "label", "mark", "q", "ruby", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u",
        "var", "wbr",
    )
)  # fmt: skip
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}


class Unreadable(Exception):
    """`problem` continues a sentence that begins with the file's name; `remedy` is a sentence."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def html_text(page: str) -> tuple[str, str]:
    """The blocks of a page as Markdown, and its title. Raises `Unreadable`."""
    tree = LexborHTMLParser(page)
    title_node = tree.css_first("title")
    title = " ".join(title_node.text().split()) if title_node else ""
    tree.strip_tags(list(_DROPPED))
    blocks = list(_html_blocks(tree.body)) if tree.body else []
    if not blocks:
        raise Unreadable("holds no text", "Save the page as it is shown, or as text.")
    heading = next((block.lstrip("# ") for block in blocks if block.startswith("#")), "")
    return "\n\n".join(blocks) + "\n", title or heading


def _html_blocks(body: LexborNode) -> Iterator[str]:
    """Every run of inline text between the borders of block elements, in order."""
    run: list[str] = []
    prefix = ""

    def flush() -> Iterator[str]:
        nonlocal prefix
        text = " ".join("".join(run).split())
        run.clear()
        if text:
            yield prefix + (text if prefix else re.sub(r"^([#>*+|=~`-])", r"\\\1", text))
            prefix = ""

    # (node, leaving): an explicit stack, because pages may be nested deeper than Python's own.
    stack: list[tuple[LexborNode, bool]] = [(body, False)]
    seen = 0
    while stack:
        node, leaving = stack.pop()
        tag = node.tag or ""
        if leaving:
            yield from flush()
            prefix = ""
            continue
        seen += 1
        if seen > NODES_MAX:
            raise Unreadable(f"has more than {NODES_MAX} elements", "Save the page as text.")
        if tag == "-text":
            run.append(node.text_content or "")
            continue
        if tag == "br":
            run.append(" ")
            continue
        if tag.startswith(("-", "!", "_")):
            continue
        if tag not in _INLINE:
            yield from flush()
            if tag == "pre":
                yield _fenced(node.text())
                continue
            if tag == "table" and (rows := _table(node)):
                yield rows
                continue
            if tag in _HEADINGS or tag == "li":
                prefix = _HEADINGS.get(tag, "- ")
            stack.append((node, True))
        stack.extend((child, False) for child in reversed(list(node.iter(include_text=True))))
    yield from flush()


def _fenced(code: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}\n{code.strip()}\n{mark}"


def _table(table: LexborNode) -> str:
    """A table of data as Markdown; empty for one that only lays out the page."""
    rows = []
    for row in table.css("tr"):
        cells = [" ".join(cell.text(separator=" ").split()).replace("|", "/") for cell in row.css("td, th")]
        if any(len(cell) > _CELL_CHARS_MAX for cell in cells):
            return ""
        if any(cells):
            rows.append("| " + " | ".join(cells) + " |")
    if len(rows) < 2 or not any(" | " in row for row in rows):
        return ""
    columns = rows[0].count("|") - 1
    return "\n".join([rows[0], "|" + "---|" * max(columns, 2), *rows[1:]])


def pdf_text(raw: bytes) -> tuple[str, str]:
    """The text of a PDF and its title. Raises `Unreadable`."""
    with _quiet():
        try:
            reader = pypdf.PdfReader(io.BytesIO(raw), strict=False)
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unreadable("is locked with a password", "Save a copy without a password.")
            if len(reader.pages) > PDF_PAGES_MAX:
                raise Unreadable(f"has more than {PDF_PAGES_MAX} pages", "Split it and submit the parts.")
            pages = [page.extract_text() or "" for page in reader.pages]
            title = str((reader.metadata and reader.metadata.title) or "").strip()
        except Unreadable:
            raise
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # pypdf raises many kinds for malformed files, also its dependencies' own
            what = type(error).__name__
            raise Unreadable(f"is a damaged PDF ({what})", "Print it to a new PDF, or save it as text.") from None
    # A lone surrogate can come out of a broken font table and could not be stored as UTF-8.
    text = "\n\n".join(_unwrap(page) for page in pages).encode("utf-8", "ignore").decode()
    if not re.search(r"\w", text):
        raise Unreadable(
            "is a PDF without text, probably scanned pages", "Run it through text recognition first (ocrmypdf)."
        )
    return text.strip() + "\n", title


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pypdf speaks of every flaw it mends through logging and warnings: not to the user's terminal."""
    logger = logging.getLogger("pypdf")
    before = logger.disabled, logger.level
    logger.disabled, logger.level = True, logging.CRITICAL + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled, logger.level = before


def _unwrap(page: str) -> str:
    """Lines of a page as paragraphs: a short line that ends a sentence, or a blank one, ends a paragraph."""
    lines = [" ".join(line.replace("\0", "").split()) for line in page.splitlines()]
    width = max((len(line) for line in lines), default=0)
    text, glue = "", ""
    for line in lines:
        if not line:
            glue = "\n\n" if text else ""
            continue
        if text.endswith("-") and re.search(r"[a-zà-ÿ]-$", text) and line[0].islower() and glue == "\n":
            text = text[:-1]
            glue = ""
        text += glue + line
        ends = line[-1] in ".!?:。！？：" and len(line) < 0.75 * width
        title = len(line) < 0.5 * width and line[-1] not in ",;，；-" and not line[-1].islower()
        glue = "\n\n" if ends or title else "\n"
    return text
