"""Calls are found in what a model writes, wherever it was cut."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.tool_reading import Call, ToolReader

NAMES = frozenset({"weather", "time"})
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
NOON = '{"name": "time", "parameters": {}}'
Found = list[str | tuple[str, Any]]


def read(text: str, cuts: list[int] | None = None, **options: bool) -> Found:
    reader = ToolReader(NAMES, **options)
    found: list[str | Call] = []
    at = 0
    for cut in [*sorted(cuts or []), len(text)]:
        found += reader.feed(text[at:cut])
        at = max(at, cut)
    found += reader.finish()
    joined: Found = []
    for one in found:
        if isinstance(one, Call):
            joined.append((one.name, json.loads(one.arguments)))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += one
        else:
            joined.append(one)
    return joined


WEATHER: tuple[str, Any] = ("weather", {"city": "Oslo"})
TIME: tuple[str, Any] = ("time", {})
FORMATS: list[tuple[str, Found]] = [
    (f"<tool_call>\n{OSLO}\n</tool_call>", [WEATHER]),
    (f"Let me see.\n\n<tool_call>{OSLO}</tool_call>\n<tool_call>{NOON}</tool_call>", ["Let me see.", WEATHER, TIME]),
    (f"<tool_call>{OSLO}", [WEATHER]),  # the end of the answer closes it
    (OSLO, [WEATHER]),
    (f"  {OSLO}; {NOON}", [WEATHER, TIME]),
    (f"<|python_tag|>{OSLO}", [WEATHER]),
    (f"[TOOL_CALLS][{OSLO}, {NOON}]", [WEATHER, TIME]),
    (f"[{OSLO}, {NOON}]", [WEATHER, TIME]),  # the mark is a control token, which llama.cpp gives no text
    (' [\n {"name": "weather", "arguments": {"city": "Oslo"}, "id": "VvvODy9mT"}]', [WEATHER]),
    ('{"type": "function", "function": ' + OSLO + "}", [WEATHER]),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', [WEATHER]),
]
TEXTS = [
    "It rains in Oslo.",
    "a < b, and <tool is no mark <tool_",
    '{"temperature": 3}',
    '{"name": "launch", "arguments": {}}',
    '<tool_call>{"name": "launch", "arguments": {}}</tool_call> and more',
    "well  <tool_call>no JSON</tool_call>\n",
    '<tool_call>{"name": "weather", "argu',
    '{"name": "weather", "arguments": [1]}',
    '{"name": {"weather": 1}, "arguments": {}}',
    '{"name": ["weather"], "arguments": {}}',
    '{"name": "weather", "arguments": {"a": ' + "[" * 991 + "]" * 991 + "}}",
    '{"name": "weather", "arguments": {"city": NaN}}',
    '{"name": "weather", "arguments": {"city": "\\ud800"}}',
    "[" * 50_000,
    "<|python_tag|>print(1)",
    "[1] is a note, [2] another",
    "[link](https://example.org)",
    '[{"temperature": 3}, {"temperature": 4}]',
    "[TOOL",
    " [ ",
    "",
]


@pytest.mark.parametrize(("text", "found"), FORMATS)
def test_calls_in_known_formats(text: str, found: Found) -> None:
    assert read(text) == found
    assert read(text, list(range(len(text)))) == found, "letter by letter"


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:30])
def test_what_is_no_call_is_text_as_it_was_written(text: str) -> None:
    assert "".join(str(one) for one in read(text)) == text
    if len(text) < 1000:
        assert "".join(str(one) for one in read(text, list(range(len(text))))) == text


@given(st.sampled_from([text for text, _ in FORMATS] + [text for text in TEXTS if len(text) < 1000]), st.data())
def test_where_it_is_cut_changes_nothing(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert read(text, cuts) == read(text)


def test_text_flows_while_it_can_be_no_call() -> None:
    reader = ToolReader(NAMES)
    assert reader.feed("It rains") == ["It rains"]
    assert reader.feed(" <") == []
    assert reader.feed("b") == [" <b"]
    listing = ToolReader(NAMES)
    assert listing.feed("[") == []
    assert listing.feed("1] is") == ["[1] is"]


def test_a_forced_answer_is_one_call() -> None:
    assert read(OSLO, forced=True) == [WEATHER]
    assert read('{"name": "weather", "argum', forced=True) == ['{"name": "weather", "argum']


def test_only_the_first_of_several_where_they_may_not_be_parallel() -> None:
    text = f"<tool_call>{OSLO}</tool_call><tool_call>{NOON}</tool_call>"
    assert read(text, parallel=False) == [WEATHER]


def test_ids_differ_and_are_such_as_every_template_takes() -> None:
    """Mistral's templates refuse a dialogue with others: the answer to a call of ours would never reach the model."""
    ids = {Call("a", "{}").id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[A-Za-z0-9]{9}", one) for one in ids)
