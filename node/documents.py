"""A file or standard input as a text that a job can take: plain text, Markdown, HTML or PDF.

Why: it runs in the user's own process, so that what can not be read is said at once, with what to do, and the mesh
carries UTF-8 text only.
The idea: the size is looked at before the content; the content tells the kind, and the suffix decides where it does
not; text is decoded strictly, never with replacement characters. HTML becomes Markdown blocks (headings, paragraphs,
lists), PDF the text of its pages with wrapped lines and hyphens mended.
Not guaranteed: the right order of text in a PDF with columns; the right guess between single-byte encodings (a guess
that is not plausible is refused); text in images.
Limits, and the threat each stops: FILE_BYTES_MAX and TEXT_BYTES_MAX memory and hours of work, PDF_PAGES_MAX a file
made to be slow.
"""

import os
import re
import stat
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.errors import ExitCode, KithError
from node.extraction import Unreadable, html_text, pdf_text
from node.paths import expanded
from solver.text import MARKDOWN, PLAIN, count_words

FILE_BYTES_MAX = 32 * 1024 * 1024
TEXT_BYTES_MAX = 4 * 1024 * 1024
#: Share of control characters from which on a text is taken for binary.
_CONTROL_SHARE_MAX = 0.005
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_TITLE_CHARS_MAX = 200
_MARKDOWN_SUFFIXES = frozenset((".md", ".markdown", ".mdown", ".mkd"))
_HTML_SUFFIXES = frozenset((".html", ".htm", ".xhtml"))
_HTML_START = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?>(?:<!--.*?-->\s*)*)<(?:!doctype html|html|head|body)\b", re.I | re.S
)
_MARKDOWN_SIGN = re.compile(r"^(?:#{1,6} \S|```|\s*[-*] \S|={3,}\s*$|\|.*\|\s*$)", re.M)
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I)
_MAGIC = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"PK\x03\x04": "a zip archive (Word, Excel and EPUB files are such archives too)",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"GGUF": "a model file",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"SQLite format 3": "a database",
}


@dataclass(frozen=True)
class Document:
    text: str  # line ends are "\n"; no byte order mark
    media_type: str  # text/plain or text/markdown
    title: str  # may be empty
    words: int
    source_name: str  # the file's name, "standard input" for "-"


def _bad(message: str, remedy: str) -> KithError:
    return KithError("bad-document", message, remedy, ExitCode.BAD_INPUT)


def read_document(path: str | os.PathLike[str], stdin: BinaryIO | None = None) -> Document:
    """Read a document; "-" reads standard input.

    Raises:
        KithError: bad-document, saying what is wrong and what to do.
    """
    if os.fspath(path) == "-":
        raw = _read_bounded(stdin or sys.stdin.buffer, "standard input")
        return document_from_bytes(raw, "standard input")
    file = expanded(path)
    name = os.fsencode(file.name or file).decode(errors="replace")  # a name may be any bytes, what is sent may not
    try:
        with _open_document(file) as stream:
            raw = _read_bounded(stream, name)
    except FileNotFoundError:
        raise _bad(f"there is no file {file}", "Check the path.") from None
    except PermissionError:
        raise _bad(f"{file} may not be read by you", "Change its permissions, or copy it.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise _bad(f"{file} can not be read: {reason}", "Check the path and the disk.") from None
    return document_from_bytes(raw, name)


def _open_document(file: Path) -> BinaryIO:
    found = file.stat()
    if stat.S_ISDIR(found.st_mode):
        raise _bad(f"{file} is a folder", "Name one file in it.")
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISFIFO(found.st_mode):
        raise _bad(f"{file} is no ordinary file", "Name a text, Markdown, HTML or PDF file.")
    if found.st_size > FILE_BYTES_MAX:
        raise _too_large(file.name, found.st_size)
    return file.open("rb")


def _too_large(name: str, size: int | None = None) -> KithError:
    most = FILE_BYTES_MAX // 2**20
    how = f"has {size / 2**20:,.0f} MiB" if size else f"has more than {most} MiB"
    return _bad(f"{name} {how}; a document may have {most} MiB", "Split it and submit the parts.")


def _read_bounded(stream: BinaryIO, name: str) -> bytes:
    raw = stream.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise _too_large(name)
    return raw


def document_from_bytes(raw: bytes, name: str) -> Document:
    """The document in `raw`; `name` gives the suffix and is used in errors. Raises `KithError`, as `read_document`."""
    if not raw.strip():
        raise _bad(f"{name} is empty", "Give a file with text in it.")
    suffix = Path(name).suffix.casefold()
    try:
        text, media_type, title = _extract(raw, name, suffix)
    except Unreadable as error:
        raise _bad(f"{name} {error.problem}", error.remedy) from None
    if (size := len(text.encode())) > TEXT_BYTES_MAX:
        raise _bad(
            f"{name} holds {size / 2**20:.1f} MiB of text; a document may have {TEXT_BYTES_MAX // 2**20} MiB",
            "Split it and submit the parts.",
        )
    words = count_words(text)
    if not words:
        raise _bad(f"{name} holds no words", "Give a file with text in it.")
    return Document(text, media_type, title[:_TITLE_CHARS_MAX], words, name)


def _extract(raw: bytes, name: str, suffix: str) -> tuple[str, str, str]:
    if b"%PDF-" in raw[:1024]:
        text, title = pdf_text(raw)
        return text, PLAIN, title
    if _HTML_START.match(raw[:4096]) or (suffix in _HTML_SUFFIXES and b"<" in raw):
        text, title = html_text(_decode(raw, name, _declared_charset(raw)))
        return text, MARKDOWN, title
    text = _decode(raw, name)
    if suffix in _MARKDOWN_SUFFIXES or _looks_like_markdown(text, suffix):
        return text, MARKDOWN, _first_heading(text)
    return text, PLAIN, ""


def _looks_like_markdown(text: str, suffix: str) -> bool:
    if suffix not in ("", ".txt", ".text"):
        return False
    return len(_MARKDOWN_SIGN.findall(text[:20_000])) >= 2 and re.search(r"^#{1,6} \S", text, re.M) is not None


def _first_heading(text: str) -> str:
    match = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text[:20_000], re.M)
    return match.group(1).strip() if match else ""


def _decode(raw: bytes, name: str, declared: str = "") -> str:
    """Strictly decoded text with "\\n" line ends."""
    for magic, what in _MAGIC.items():
        if raw.startswith(magic):
            raise _bad(f"{name} is {what}, not a document", "Give a text, Markdown, HTML or PDF file.")
    text = None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = _try(raw, "utf-16")
        if text is None:
            raise _bad(f"{name} says that it is UTF-16 and is not", "Save it as UTF-8.")
    elif b"\0" in raw:
        raise _bad(f"{name} is binary, not text", "Give a text, Markdown, HTML or PDF file.")
    for encoding in ("utf-8-sig", declared, "gb18030", "big5", "shift_jis", "cp1251", "cp1252"):
        if text is None and encoding:
            guess = _try(raw, encoding)
            if guess is not None and (encoding in ("utf-8-sig", declared) or _is_plausible(guess, encoding)):
                text = guess
    if text is None:
        raise _bad(f"the encoding of {name} is not known", f"Save it as UTF-8 (iconv -f ENCODING -t UTF-8 {name}).")
    if len(_CONTROL.findall(text)) > _CONTROL_SHARE_MAX * len(text):
        raise _bad(f"{name} is binary, not text", "Give a text, Markdown, HTML or PDF file.")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")


def _try(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except (UnicodeError, LookupError):
        return None


#: Characters of which any Chinese or Japanese text is full: other text read as such gives rare ones only.
_COMMON_CJK = frozenset(
    "的一是不了人在有我他这這中大来來上个個国國和地到说說们們为為子时時道也你年就那要以会會可后後のはをたがでとしてに，。、"
)
_PLAUSIBLE: dict[str, re.Pattern[str]] = {
    "gb18030": re.compile(r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef\u2010-\u2026]"),
    "big5": re.compile(r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef\u2010-\u2026]"),
    "shift_jis": re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e]"),
    "cp1251": re.compile(r"[\u0410-\u044fЁё«»–—“”№]"),
    "cp1252": re.compile(r"[à-öø-ÿÀ-ÖØ-ßœŒ“”‘’„‚–—…€«»°§©®·×´ ]"),
}


def _is_plausible(text: str, encoding: str) -> bool:
    beyond = [char for char in text if ord(char) > 127]
    if not beyond:
        return True
    if any(unicodedata.category(char) in ("Cc", "Co", "Cn") for char in beyond):
        return False
    expected = sum(1 for char in beyond if _PLAUSIBLE[encoding].match(char))
    if expected < 0.95 * len(beyond):
        return False
    if encoding in ("gb18030", "big5", "shift_jis"):
        return sum(1 for char in beyond if char in _COMMON_CJK) >= 0.05 * len(beyond)
    share = len(beyond) / len(text)
    return share > 0.3 if encoding == "cp1251" else share < 0.25


def _declared_charset(raw: bytes) -> str:
    match = _CHARSET.search(raw[:4096])
    name = match.group(1).decode("ascii", "ignore").casefold() if match else ""
    return {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin1": "cp1252"}.get(name, name)
