"""The event stream of a chat API, cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine import sse
from node.engine.sse import SseError, SseParser

STREAM = ': comment\nevent: x\ndata: {"a": "語"}\r\n\r\ndata:one\ndata: two\n\nid: 3\n\ndata: [DONE]\n\n'.encode()
EVENTS = ['{"a": "語"}', "one\ntwo", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_do_not_depend_on_the_cuts(cuts: list[int]) -> None:
    parser = SseParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    found = [event for begin, end in pairwise(edges) for event in parser.feed(STREAM[begin:end])]
    assert found == EVENTS


def test_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 100)
    parser = SseParser()
    with pytest.raises(SseError):
        list(map(list, map(parser.feed, [b"0123456789"] * 20)))


def test_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 100)
    parser = SseParser()
    with pytest.raises(SseError):
        list(map(list, map(parser.feed, [b"data: 0123456789\n"] * 20)))
