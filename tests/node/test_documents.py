"""Good documents are read; bad ones end in one sentence and what to do."""

import io
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.documents import FILE_BYTES_MAX, TEXT_BYTES_MAX, Document, document_from_bytes, read_document
from node.errors import ExitCode, KithError
from solver.text import MARKDOWN, PLAIN

DATA = Path(__file__).parent.parent / "data"
VILLAGE = (DATA / "village.zh.txt").read_text()
GERMAN = "Müller geht über die Brücke und trinkt einen Kaffee. Danach fährt er nach Köln."
RUSSIAN = "Привет, мир! Это небольшой русский текст в старой кодировке."


def refused(raw: bytes, name: str = "file.txt") -> KithError:
    with pytest.raises(KithError) as caught:
        document_from_bytes(raw, name)
    check(caught.value)
    return caught.value


def attempt(raw: bytes, name: str) -> Document | KithError:
    try:
        return document_from_bytes(raw, name)
    except KithError as error:
        return error


def check(error: KithError) -> None:
    assert error.code == "bad-document"
    assert error.exit_code == ExitCode.BAD_INPUT
    assert not error.message.endswith(".")
    assert error.remedy.endswith((".", ")"))
    assert "\n" not in error.message + error.remedy


def test_the_sample_documents_are_read() -> None:
    report = read_document(DATA / "report.md")
    assert (report.media_type, report.title) == (MARKDOWN, "Water for Kestrel Valley: report of the second year")
    assert report.words > 600
    village = read_document(str(DATA / "village.zh.txt"))
    assert (village.media_type, village.title, village.source_name) == (PLAIN, "", "village.zh.txt")
    assert village.words > 500
    page = read_document(DATA / "page.html")
    assert (page.media_type, page.title) == (MARKDOWN, "How the harbour library lends tools")
    assert "## Who repairs them" in page.text


def test_standard_input_is_read() -> None:
    document = read_document("-", io.BytesIO(b"# Title\n\n- one thing\n\nA text."))
    assert (document.text, document.media_type) == ("# Title\n\n- one thing\n\nA text.", MARKDOWN)
    assert document.source_name == "standard input"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (VILLAGE.encode(), VILLAGE),
        (b"\xef\xbb\xbf" + VILLAGE.encode(), VILLAGE),
        (VILLAGE.encode("utf-16"), VILLAGE),
        (b"\xfe\xff" + VILLAGE.encode("utf-16-be"), VILLAGE),
        (VILLAGE.encode("gb18030"), VILLAGE),
        (GERMAN.encode("cp1252"), GERMAN),
        (RUSSIAN.encode("cp1251"), RUSSIAN),
        ("価格は三千円です。これは日本語の文章で、昔の文字コードになっている。".encode("shift_jis"), None),
        (b"one\r\ntwo\rthree\x0cfour", "one\ntwo\nthree\n\nfour"),
    ],
)
def test_encodings_are_told_apart(raw: bytes, text: str | None) -> None:
    if text is None:
        text = raw.decode("shift_jis")
    assert document_from_bytes(raw, "file.txt").text == text


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"... --- !!!", "no words"),
        (b"abc\x00def", "binary"),
        (bytes(range(1, 256)) * 9, "binary|encoding"),
        (b"\x01\x02\x03 words \x04\x05", "binary"),
        (b"\xff\xfeodd", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n....", "picture"),
        (b"PK\x03\x04word/document.xml", "Word"),
        (b"GGUF\x03", "model"),
        (b"\xc3\x28 \xa0\xa1 \x81\x8d\x8f\x90 text", "encoding"),
        (b"x y " * (TEXT_BYTES_MAX // 4 + 1), "MiB of text"),
        (b"<html><body><script>x</script></body></html>", "no text"),
        (b"%PDF-1.7\nnothing of a PDF follows", "damaged PDF"),
    ],
)
def test_what_can_not_be_read_is_said(raw: bytes, says: str) -> None:
    assert re.search(says, refused(raw).message)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.txt", "a.md", "a.html", "a.pdf", "a"]))
def test_no_bytes_raise_anything_else(raw: bytes, name: str) -> None:
    outcome = attempt(raw, name)
    if isinstance(outcome, KithError):
        check(outcome)
    else:
        assert outcome.words > 0
        outcome.text.encode()  # can be stored


@settings(deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_utf8_is_always_taken_as_such(text: str) -> None:
    outcome = attempt(("words " + text).encode(), "a.txt")
    if isinstance(outcome, KithError):
        assert "binary" in outcome.message
    else:
        assert "".join(outcome.text.split()) == "".join(("words " + text).split())


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    fifo_free = tmp_path / "folder"
    fifo_free.mkdir()
    for path, says in (
        (tmp_path / "missing.txt", "no file"),
        (fifo_free, "folder"),
        ("/dev/null", "no ordinary file"),
        ("bad\0name", "can not be read"),
        ("x" * 5000, "can not be read"),
    ):
        with pytest.raises(KithError, match=says) as caught:
            read_document(path)
        check(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("words")
    file.chmod(0)
    with pytest.raises(KithError, match="may not be read"):
        read_document(file)


def test_a_huge_file_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    file = tmp_path / "huge.txt"
    with file.open("wb") as stream:
        stream.truncate(200 * 2**20)
    with pytest.raises(KithError, match=r"200 MiB; a document may have 32 MiB") as caught:
        read_document(file)
    check(caught.value)
    with pytest.raises(KithError, match="more than 32 MiB"):
        read_document("-", io.BytesIO(b"\0" * (FILE_BYTES_MAX + 1)))


def test_a_file_whose_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.md"
    try:
        with open(path, "wb") as file:
            file.write(b"# Rivers\n\nThe Rhine rises in the Alps.\n")
    except OSError:
        pytest.skip("this disk takes names in UTF-8 only")
    document = read_document(Path(os.fsdecode(path)))
    assert (document.source_name, document.media_type) == ("caf\N{REPLACEMENT CHARACTER}.md", "text/markdown")


def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("~draft.txt").write_text("The Rhine rises in the Alps.")
    assert read_document("~draft.txt").words == 6
    assert read_document("~/~draft.txt").words == 6
    with pytest.raises(KithError, match="no file ~nobody-of-this-name/draft"):
        read_document("~nobody-of-this-name/draft.txt")


def test_a_file_that_begins_with_many_comments_is_read_at_once() -> None:
    """Each more took twice as long: 28 took 46 s."""
    comments = b"<!-- a -->\n" * 28
    began = time.process_time()
    document = document_from_bytes(comments + b"The Rhine rises in the Alps.", "a.txt")
    assert time.process_time() - began < 5
    assert document.media_type == PLAIN
    page = document_from_bytes(comments + b"<html><body>The Rhine rises.</body></html>", "a")
    assert (page.media_type, page.text) == (MARKDOWN, "The Rhine rises.\n")
