"""Tests of node/addresses.py."""

import pytest

from node.addresses import split_address


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:7420", ("127.0.0.1", 7420)),
        ("[::1]:0", ("::1", 0)),
        ("box.lan:1", ("box.lan", 1)),
        ("box", None),
        (":1", None),
        ("a b:1", None),
        ("a:65536", None),
        ("a:-1", None),
        ("a:١", None),
    ],
)
def test_address(text: str, parts: tuple[str, int] | None) -> None:
    assert split_address(text) == parts
