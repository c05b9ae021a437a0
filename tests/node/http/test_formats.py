"""Formats of answers become one JSON schema."""

import json
from typing import Any

import pytest

from node.http.fields import Refused
from node.http.formats import ANY_OBJECT, schema_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_both_apis_write_a_schema_in_their_own_way() -> None:
    chat = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    responses = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    assert json.loads(schema_of(chat, "response_format")) == SCHEMA == json.loads(schema_of(responses, "text.format"))
    assert schema_of({"type": "json_object"}, "f") == ANY_OBJECT
    assert schema_of({"type": "text"}, "f") == schema_of(None, "f") == ""


@pytest.mark.parametrize(
    "given",
    [
        "json",
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": []},
        {"type": "json_schema", "json_schema": {"schema": "x"}},
        {"type": "json_schema", "schema": {"const": float("inf")}},
    ],
)
def test_what_is_no_format_is_refused(given: Any) -> None:
    with pytest.raises(Refused) as caught:
        schema_of(given, "f")
    assert caught.value.param.startswith("f")
