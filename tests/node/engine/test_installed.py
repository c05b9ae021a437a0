"""Which engine is taken by default."""

import pytest

from node.engine import installed


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"llama_cpp", "xllamacpp"}, "llama"),
        ({"xllamacpp"}, "xllamacpp"),
        ({"llama_cpp"}, "llama"),
        (set(), "llama"),
    ],
)
def test_the_first_that_is_there(there: set[str], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object() if name in there else None)
    assert installed.default_engine() == taken
    assert installed.installed("echo")
    assert installed.installed("openai")
