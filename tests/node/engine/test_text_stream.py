"""Whatever way a text is cut into pieces of bytes, what is shown is the text up to the first stop string."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.engine.text_stream import TextStream


def shown(text: str, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    data = text.encode()
    stream = TextStream(stops)
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    parts = [stream.feed(data[begin:end]) for begin, end in pairwise(edges)]
    return [*parts, stream.finish()], stream.stopped


@given(st.text(), st.lists(st.integers(0, 1000), max_size=20))
def test_pieces_join_to_the_text(text: str, cuts: list[int]) -> None:
    parts, stopped = shown(text, cuts, [])
    assert "".join(parts) == text
    assert not stopped


@given(
    st.text(alphabet="ab語\n", max_size=30),
    st.lists(st.integers(0, 100), max_size=20),
    st.lists(st.text(alphabet="ab語\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(text: str, cuts: list[int], stops: list[str]) -> None:
    parts, stopped = shown(text, cuts, stops)
    found = "".join(parts)
    assert text.startswith(found)
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in found for stop in stops)
    if not stopped:
        assert found == text


def test_characters_come_whole() -> None:
    stream = TextStream()
    first, second, third = "語".encode()[:1], "語".encode()[1:2], "語".encode()[2:]
    assert [stream.feed(first), stream.feed(second), stream.feed(third)] == ["", "", "語"]


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream()
    assert stream.feed(b"a" + "語".encode()[:2]) == "a"
    assert stream.finish() == ""


def test_held_text_is_released_when_no_stop_comes() -> None:
    stream = TextStream(["<end>"])
    assert stream.feed(b"text <en") == "text "
    assert stream.feed(b"try>") == "<entry>"
    assert stream.feed(b" <") == " "
    assert stream.finish() == "<"


def test_the_stop_string_that_is_complete_first_counts_however_the_text_is_cut() -> None:
    for pieces in (["xaca"], ["x", "a", "c", "a"], ["xac", "a"]):
        stream = TextStream(["aca", "c"])
        assert "".join(stream.feed(piece.encode()) for piece in pieces) == "xa", pieces
    longer = TextStream(["ca", "aca"])  # both at once: the longer one
    assert longer.feed(b"xaca") == "x"


@given(st.text(alphabet="abc", max_size=30), st.data(), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_text_that_was_shown_is_not_shown_again(text: str, data: st.DataObject, stops: list[str]) -> None:
    cut = data.draw(st.integers(0, len(text)))
    whole = TextStream(stops)
    expected = whole.feed(text.encode()) + whole.finish()
    rest = TextStream(stops)
    rest.resume(text[:cut])
    said = ""
    for character in text[cut:]:
        said += rest.feed(character.encode())
    said += rest.finish()
    assert said == expected[cut:]
    assert rest.stopped == whole.stopped
