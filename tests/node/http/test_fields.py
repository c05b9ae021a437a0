"""Reading JSON bodies: what is refused names its field."""

import json

import pytest

from node.http import fields
from node.http.fields import (
    DEPTH_MAX,
    Refused,
    canonical,
    flag,
    integer,
    listing,
    mapping,
    number,
    parsed,
    refuse,
    text,
)


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b"1" * 10_000, b"[]", b"\xff", b'"x"'])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parsed(raw)
    assert caught.value.code == "bad-request"


def test_a_body_may_be_so_deep_and_no_deeper() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a": ' + b"[" * levels + b"]" * levels + b"}"

    assert parsed(nested(DEPTH_MAX - 1))
    with pytest.raises(Refused, match="nested deeper"):
        parsed(nested(DEPTH_MAX))


@pytest.mark.parametrize(
    ("read", "param"),
    [
        (lambda: text(1, "a"), "a"),
        (lambda: text("\ud800", "a"), "a"),
        (lambda: number({"a": True}, "a", 0, 0, 1), "a"),
        (lambda: number({"a": float("nan")}, "a", 0, 0, 1), "a"),
        (lambda: number({"a": 2}, "a", 0, 0, 1), "a"),
        (lambda: integer({"a": 0.5}, "a", 0, 0, 1), "a"),
        (lambda: flag({"a": 1}, "a"), "a"),
        (lambda: mapping([], "a"), "a"),
        (lambda: listing([], "a", 3), "a"),
        (lambda: listing([1] * 4, "a", 3), "a"),
        (lambda: canonical({"x": float("inf")}, "a"), "a"),
        (lambda: canonical({"x": "\udfff"}, "a"), "a"),
        (lambda: refuse({"b": 0, "a": "x"}, {"b": "no", "a": "no"}), "a"),
    ],
)
def test_a_refusal_names_the_field(read: object, param: str) -> None:
    with pytest.raises(Refused) as caught:
        read()  # type: ignore[operator]
    assert caught.value.param == param
    json.dumps(caught.value.message, ensure_ascii=False).encode()


def test_what_is_absent_has_its_default_and_what_asks_for_nothing_is_harmless() -> None:
    assert number({"a": None}, "a", 0.5, 0, 1) == 0.5
    assert integer({}, "a", 3, 0, 5) == 3
    assert flag({}, "a", True) is True
    assert canonical({"ü": [1]}, "a") == '{"ü": [1]}'
    refuse({"a": None, "b": False, "c": [], "d": "none"}, dict.fromkeys("abcd", "no"), ("none",))
    assert fields.number({"a": 1}, "a", 0, 0, 1) == 1


def test_large_bounds_are_written_out() -> None:
    with pytest.raises(Refused, match=r"from 1 to 1,048,576$"):
        integer({"a": 0}, "a", 1, 1, 1 << 20)
    with pytest.raises(Refused, match=r"from 0 to 9,223,372,036,854,775,807$"):
        integer({"a": -7}, "a", 0, 0, (1 << 63) - 1)
    with pytest.raises(Refused, match=r"from -0\.5 to 2$"):
        number({"a": 3}, "a", 0, -0.5, 2.0)
