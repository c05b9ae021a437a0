"""Tools and the choice among them."""

import json
from typing import Any

import pytest

from node.engine.grammar import Grammar, Matcher, Vocabulary
from node.engine.json_schema import to_gbnf
from node.http.fields import Refused
from node.http.tools import toolbox_of

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}}
TIME = {"type": "function", "name": "time"}  # as responses write it
BOTH = [WEATHER, TIME]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def follows(schema: str, text: str) -> bool:
    """Whether an engine that is held to the schema could write this."""
    matcher = Matcher(Grammar(to_gbnf(schema)), Vocabulary([text.encode(), b""], [1]))
    return matcher.allows(0)


def test_both_apis_write_tools_in_their_own_way() -> None:
    box = toolbox_of({"tools": BOTH})
    assert [tool.name for tool in box.tools] == ["weather", "time"]
    assert box.active
    assert not box.forced
    shown = json.loads(box.as_json())
    assert shown[0] == WEATHER
    assert shown[1]["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("choice", "active", "forced"),
    [
        ("auto", True, False),
        ("none", False, False),
        ("required", True, True),
        (named("time"), True, True),
        ({"type": "function", "name": "time"}, True, True),
        (None, True, False),
    ],
)
def test_what_the_choice_means(choice: Any, active: bool, forced: bool) -> None:
    box = toolbox_of({"tools": BOTH, "tool_choice": choice})
    assert (box.active, box.forced) == (active, forced)


def test_a_call_that_is_required_has_a_schema() -> None:
    one = json.loads(toolbox_of({"tools": BOTH, "tool_choice": named("weather")}).call_schema())
    assert one["properties"] == {"name": {"const": "weather"}, "arguments": CITY}
    assert one["required"] == ["name", "arguments"]
    several = json.loads(toolbox_of({"tools": BOTH, "tool_choice": "required"}).call_schema())
    assert [call["properties"]["name"]["const"] for call in several["anyOf"]] == ["weather", "time"]


@pytest.mark.parametrize("parameters", [{}, {"description": "none"}, {"additionalProperties": False}])
def test_arguments_are_an_object_whatever_their_schema_leaves_open(parameters: dict[str, Any]) -> None:
    """A model that may write anything there writes a text or a number, and that is no call."""
    tools = [{"type": "function", "name": "ring", "parameters": parameters}]
    schema = toolbox_of({"tools": tools, "tool_choice": "required"}).call_schema()
    assert not follows(schema, '{"name": "ring", "arguments": 5}')
    assert follows(schema, '{"name": "ring", "arguments": {}}')


def test_definitions_are_found_from_the_root() -> None:
    inner = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}
    tools = [{"type": "function", "name": name, "parameters": inner} for name in ("f", "g")]
    assert json.loads(toolbox_of({"tools": tools, "tool_choice": "required"}).call_schema())["$defs"] == inner["$defs"]
    tools[1]["parameters"] = inner | {"$defs": {"A": {"type": "string"}}}
    with pytest.raises(Refused, match="differently"):
        toolbox_of({"tools": tools, "tool_choice": "required"}).call_schema()


def test_words_name_the_tools_that_may_be_called() -> None:
    words = toolbox_of({"tools": BOTH, "tool_choice": named("weather")}).in_words()
    assert "weather: Tells it." in words
    assert "time" not in words


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, ""),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "auto"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": BOTH, "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": BOTH, "tool_choice": named("nothing")}, "tool_choice"),
        ({"tools": BOTH, "tool_choice": {"type": "mcp"}}, "tool_choice"),
    ],
)
def test_what_is_no_tool_is_refused(body: dict[str, Any], param: str) -> None:
    if not param:
        assert not toolbox_of(body).active
        return
    with pytest.raises(Refused) as caught:
        toolbox_of(body)
    assert caught.value.param == param
