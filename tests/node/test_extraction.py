"""Text comes out of HTML and PDF in blocks, and nothing that is not read on the page."""

import contextlib
import logging
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.documents import document_from_bytes, read_document
from node.errors import KithError
from node.extraction import Unreadable, html_text, pdf_text
from solver.text import outline, plain

DATA = Path(__file__).parent.parent / "data"


def pdf_of(*pages: list[str], title: str = "") -> bytes:
    """A small PDF: one Helvetica line for every string."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    for lines in pages:
        drawn = b"".join(
            b"("
            + line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
            + b") Tj T*\n"
            for line in lines
        )
        stream = zlib.compress(b"BT /F1 11 Tf 72 750 Td 14 TL\n" + drawn + b"ET")
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    objects.append(b"<< /Title (%s) >>" % title.encode("cp1252"))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"<< /Size %d /Root 1 0 R /Info %d 0 R >>" % (size, size - 1)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n%s\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        table,
        trailer,
        len(out),
    )


LINES = [
    "Annual report",
    "",
    "The harbour was deep-",
    "ened last year, which took longer than any of the engin-",
    "eers had expected. It cost 3.5 million euros.",
    "Ships of 120 metres can now enter at every tide of the month.",
]


def test_a_pdf_is_read_with_its_wrapped_lines_mended() -> None:
    text, title = pdf_text(pdf_of(LINES, ["A second page."], title="Harbour"))
    assert title == "Harbour"
    assert "The harbour was deepened last year, which took longer than any of the engineers had expected." in " ".join(
        text.split()
    )
    document = document_from_bytes(pdf_of(LINES, title="Harbour"), "report.bin")
    assert document.media_type == "text/plain"
    sentences = [plain(document.text[s.begin : s.end]) for s in outline(document.text, document.media_type).sentences]
    assert "It cost 3.5 million euros." in sentences


def test_a_pdf_without_text_says_so() -> None:
    with pytest.raises(Unreadable, match="scanned"):
        pdf_text(pdf_of([]))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_pdf_raises_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(pdf_of(LINES))
    for _ in range(data.draw(st.integers(1, 12))):
        raw[data.draw(st.integers(8, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(8, len(raw)))
    with contextlib.suppress(KithError):
        assert document_from_bytes(bytes(raw[:cut]), "x.pdf").words


def test_the_reader_s_warnings_stay_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    damaged = pdf_of(LINES).replace(b"startxref\n", b"startxref\n9")
    with caplog.at_level(logging.DEBUG):
        pdf_text(damaged)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_page_becomes_blocks_in_order() -> None:
    page = read_document(DATA / "page.html")
    blocks = page.text.strip().split("\n\n")
    assert blocks[0] == "# How the harbour library lends tools"
    assert blocks[1].startswith("The harbour library lends drills, ladders")
    assert "twice as many as the year before." in blocks[1]
    assert blocks[3] == "Four retired mechanics check every tool that comes back."
    assert blocks[4] == "- Broken tools are repaired within two weeks."
    assert "```\ntools list --overdue\n```" in blocks
    assert "| tool | loans |\n|---|---|\n| drill | 412 |\n| ladder | 277 |" in blocks
    for unread in ("Home", "changed by", "sans-serif", "newsletter", "Copyright"):
        assert unread not in page.text


def test_a_table_for_layout_is_read_as_paragraphs() -> None:
    text, _ = html_text(
        f"<table><tr><td>{'Long words here. ' * 20}</td><td>menu</td></tr><tr><td>x y</td></tr></table>"
    )
    assert "|" not in text
    assert "Long words here." in text


def test_text_that_looks_like_markdown_is_not_taken_for_it() -> None:
    text, _ = html_text("<p># not a heading</p><p>- no item</p>")
    assert outline(text).headings == ("",)


@pytest.mark.parametrize("page", ["", "<html></html>", "<p></p>", "<script>text</script>"])
def test_a_page_without_text_says_so(page: str) -> None:
    with pytest.raises(Unreadable):
        html_text(page)


def test_deep_nesting_is_read() -> None:
    text, _ = html_text("<div>" * 3000 + "words deep down" + "</div>" * 3000)
    assert "words deep down" in text


@settings(deadline=None)
@given(
    st.text(max_size=200),
    st.lists(st.sampled_from(["<p>", "</p>", "<li>", "<h2>", "<table><tr><td>", "<pre>", "x", "<!--", "<svg>"])),
)
def test_no_page_raises_anything_else(text: str, tags: list[str]) -> None:
    with contextlib.suppress(Unreadable):
        assert html_text("".join(tags) + text + "".join(tags))[0].strip()
