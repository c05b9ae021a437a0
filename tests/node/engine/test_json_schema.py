"""Whatever is said under a converted schema is JSON that follows it: random walks through the grammar."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.grammar import Budget, Grammar
from node.engine.grammar_memory import State
from node.engine.json_schema import to_gbnf
from node.errors import KithError

ALPHABET = 'abcdefghijklmnopqrstuvwxyzTZ{}[]",:0123456789.eE+-_ \\/\n\t\x01\x7fé语😀'


def walk(grammar: Grammar, rng: random.Random) -> str | None:
    """A text of the grammar, drawn character by character; None where it did not come to an end."""
    state, text = grammar.start, ""
    for length in range(600):
        moves: dict[str, State] = {}
        for character in ALPHABET:
            after = (
                state.moves[character]
                if character in state.moves
                else grammar.move(state, character, Budget(1_000_000))
            )
            if after is not None:
                moves[character] = after
        if state.accepting and (not moves or rng.random() < 0.5):
            return text
        if not moves:
            return None
        closing = [character for character in moves if character in '"}],']
        character = rng.choice(closing if closing and length > 60 else list(moves))
        text += character
        state = moves[character]
    return None


def texts(schema: Any, count: int = 30) -> list[Any]:
    grammar = Grammar(to_gbnf(schema if isinstance(schema, str) else json.dumps(schema)))
    found = [text for seed in range(count) if (text := walk(grammar, random.Random(seed))) is not None]
    assert found
    return [json.loads(text) for text in found]


def test_no_schema_is_any_object() -> None:
    assert all(isinstance(value, dict) for value in texts("{}"))


def test_properties_and_required() -> None:
    schema = {
        "type": "object",
        "title": "A person",
        "properties": {
            "name": {"type": "string", "description": "full"},
            "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    for value in texts(schema):
        assert set(value) <= {"name", "age", "tags"}
        assert isinstance(value["name"], str)
        assert isinstance(value.get("age", 0), int)
        assert len(value.get("tags", [])) <= 2
        assert all(len(tag) <= 3 for tag in value.get("tags", []))


def test_constants_come_as_they_are() -> None:
    odd = ['say "x"', "two\nlines", "back\\slash", "语", "\x01", 1, 1.5, None, True, {"a": [1, "]"]}]
    found = texts({"enum": odd}, 300)
    assert all(value in odd for value in found)
    assert len({json.dumps(value) for value in found}) >= 8


def test_property_names_come_as_they_are() -> None:
    for value in texts({"type": "object", "properties": {'a"b\\': {"type": "null"}}, "required": ['a"b\\']}):
        assert value == {'a"b\\': None}


def test_definitions_of_one_name_stay_apart() -> None:
    schema = {
        "type": "object",
        "properties": {"item": {"type": "string", "maxLength": 2}, "other": {"$ref": "#/$defs/item"}},
        "required": ["item", "other"],
        "$defs": {"item": {"type": "boolean"}},
    }
    for value in texts(schema):
        assert isinstance(value["item"], str)
        assert isinstance(value["other"], bool)


def test_recursion() -> None:
    node = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}, "v": {"type": "number"}},
        "required": ["v"],
    }

    def check(value: Any) -> None:
        assert isinstance(value["v"], int | float)
        for side in ("left", "right"):
            if side in value:
                check(value[side])

    for value in texts({"$ref": "#/$defs/node", "$defs": {"node": node}}):
        check(value)


def test_unions_formats_and_lengths() -> None:
    assert all(value is None or isinstance(value, str) for value in texts({"type": ["string", "null"]}))
    assert {type(value) for value in texts({"anyOf": [{"type": "boolean"}, {"const": "q"}]})} == {bool, str}
    assert all(len(value) == 10 for value in texts({"type": "string", "format": "date"}))
    assert all(2 <= len(value) <= 4 for value in texts({"type": "array", "items": {}, "minItems": 2, "maxItems": 4}))
    assert all(2 <= len(value) <= 4 for value in texts({"type": "string", "minLength": 2, "maxLength": 4}))
    assert all(value == [] for value in texts({"type": "array", "items": {"type": "null"}, "maxItems": 0}))


def test_patterns_hold_and_stay_json() -> None:
    for value in texts({"type": "string", "pattern": r"^[a-z]{2,4}-\d+$"}):
        letters, _, digits = value.partition("-")
        assert 2 <= len(letters) <= 4
        assert digits.isdigit()
    assert texts({"type": "string", "pattern": r"^(a.c|[^x]\w{2}\.)+$"})


@pytest.mark.parametrize(
    "pattern",
    [
        "^foo|bar$",
        "^(a|b)|c|d{2}$",
        r"^$|^\d+$|^[$|^]:$",
        r"^[\w\.-]+:[\w\.-]+\.\w+$",
        r"^[a-z\+\*\(\)]+$",
        r"^[^\.\s\d]+$",
        r"^[\]\[\^\-]+$",
        r"^\S+$",
        r"^\D\W\w$",
        "^a+?b*?c??d{1,2}?$",
        "^(?:ab|c)+$",
        r"^\+\?*:[.+]?$",
    ],
)
def test_all_that_is_said_under_a_pattern_is_json_that_matches_it(pattern: str) -> None:
    wanted = re.compile(pattern, re.ASCII)
    for (value,) in texts(
        {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 1, "maxItems": 1}
    ):
        assert wanted.search(value), value


@pytest.mark.parametrize("pattern", [r"^\S$", r"^[^\s]$"])
def test_what_is_no_space_is_none_of_unicode(pattern: str) -> None:
    grammar = Grammar(to_gbnf(json.dumps({"type": "string", "pattern": pattern})))
    quoted = grammar.move(grammar.start, '"', Budget(1000))
    assert quoted is not None
    for space in " \xa0\u2003\u3000\ufeff":
        assert grammar.move(quoted, space, Budget(1000)) is None
    assert grammar.move(quoted, "é", Budget(1000)) is not None


def test_a_class_of_a_pattern_that_is_not_known_is_said_of_the_schema() -> None:
    with pytest.raises(KithError, match=r"class .* of a pattern") as caught:
        to_gbnf(json.dumps({"type": "string", "pattern": r"^[\p{L}]$"}))
    assert caught.value.code == "bad-schema"


kinds = st.sampled_from(["string", "integer", "number", "boolean", "null"])
leaves = st.one_of(
    kinds.map(lambda kind: {"type": kind}),
    st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none()), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=4).map(
            lambda parts: {"type": "object", "properties": parts, "required": list(parts)[:2]}
        ),
        inner.map(lambda one: {"type": "array", "items": one, "maxItems": 3}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
    ),
    max_leaves=8,
)


@given(schemas)
@settings(max_examples=40, deadline=None)
def test_any_schema_of_the_usual_parts_gives_json(schema: dict[str, Any]) -> None:
    grammar = Grammar(to_gbnf(json.dumps(schema)))
    for seed in range(5):
        if (text := walk(grammar, random.Random(seed))) is not None:
            json.loads(text)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "characters"),
        ("[" * 60_000, "no JSON"),
        ("[]", "no JSON object"),
        ("false", "no JSON object"),
        ('{"type": "spaceship"}', "Unrecognized"),
        ('{"type": "string", "minLength": 1000000000}', "minLength"),
        ('{"type": "array", "items": {}, "minItems": -1}', "minItems"),
        ('{"type": "array", "items": {}, "minItems": 3, "maxItems": 2}', "bound"),
        ('{"type": "string", "pattern": "^a{1000000}$"}', "pattern"),
        ('{"type": "string", "pattern": "a"}', "start with"),
        ('{"type": "string", "pattern": "^[!-~]$"}', "control characters"),
        ('{"type": "string", "pattern": "^\\"$"}', "quotation"),
        ('{"type": "string", "pattern": "^(?=a)$"}', "can not be converted"),
        ('{"type": "string", "pattern": "^(a$|b)$"}', "inside"),
        ('{"$ref": "https://example.org/schema.json"}', "not allowed"),
        ('{"$ref": "#/$defs/nothing"}', "can not be converted"),
        ('{"properties": {"a": 3}}', "no schema"),
        ('{"properties": [1]}', "can not be converted"),
        ('{"enum": 3}', "can not be converted"),
        (json.dumps({"enum": list(range(1000))}), "parts under"),
        (json.dumps({"properties": {str(i): {} for i in range(200)}}), "parts under"),
        ('{"items": ' * 40 + "{}" + "}" * 40, "deeper"),
    ],
)
def test_what_can_not_be_converted_is_refused(schema: str, reason: str) -> None:
    with pytest.raises(KithError, match=reason) as caught:
        to_gbnf(schema)
    assert caught.value.code == "bad-schema"
    assert len(caught.value.message) < 300


def test_references_that_multiply_are_refused() -> None:
    """Each definition names the next one twice: 2 to the power of 30 ways to the last."""
    following = {
        f"k{i}": {"properties": {"x": {"allOf": [{"$ref": f"#/$defs/k{i + 1}"}, {"$ref": f"#/$defs/k{i + 1}"}]}}}
        for i in range(30)
    }
    schema = {"properties": {"x": {"$ref": "#/$defs/k0"}}, "$defs": following | {"k30": {"type": "object"}}}
    with pytest.raises(KithError, match="too large"):
        to_gbnf(json.dumps(schema))


def test_a_reference_to_itself_is_refused_by_the_grammar() -> None:
    with pytest.raises(KithError) as caught:
        Grammar(to_gbnf('{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'))
    assert caught.value.code in ("bad-grammar", "bad-schema")
