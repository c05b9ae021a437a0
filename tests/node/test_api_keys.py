"""Keys are shown once, kept as hashes, and worth nothing once they are removed."""

import json
import stat
from pathlib import Path

import pytest

from node.api_keys import KEYS_MAX, ApiKeys
from node.errors import KithError


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    return ApiKeys(tmp_path / "keys.json")


def test_a_key_is_found_again_and_is_in_no_file(keys: ApiKeys, tmp_path: Path) -> None:
    secret = keys.add("laptop", ["chat", "models"], 1)
    found = keys.find(secret)
    assert found is not None
    assert (found.name, found.scopes) == ("laptop", ("chat", "models"))
    kept = tmp_path / "keys.json"
    assert secret not in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["", "kith-", "x" * 10_000, "kith-\udfff", "\0"])
def test_what_is_no_key_is_not_found(keys: ApiKeys, wrong: str) -> None:
    secret = keys.add("laptop", ["chat"], 1)
    assert keys.find(wrong) is None
    assert keys.find(secret[:-1]) is None
    assert keys.find(secret + " ") is None


def test_another_process_that_removes_a_key_is_heard(keys: ApiKeys, tmp_path: Path) -> None:
    secret = keys.add("a", ["chat"], 1)
    other = keys.add("b", ["chat"], 1)
    assert keys.find(secret) is not None
    ApiKeys(tmp_path / "keys.json").remove("a")
    assert keys.find(secret) is None
    assert keys.find(other) is not None


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [
        ("two words", ["chat"], "no name for a key"),
        ("", ["chat"], "no name for a key"),
        ("a", ["chat", "root"], "no scope 'root'"),
        ("a", [], "needs a scope"),
    ],
)
def test_names_and_scopes_are_checked(keys: ApiKeys, name: str, scopes: list[str], said: str) -> None:
    with pytest.raises(KithError, match=said):
        keys.add(name, scopes, 1)


def test_a_name_is_given_once_and_keys_have_an_end(keys: ApiKeys, tmp_path: Path) -> None:
    keys.add("a", ["chat"], 1)
    with pytest.raises(KithError, match="already"):
        keys.add("a", ["chat"], 1)
    entry = json.loads((tmp_path / "keys.json").read_text())["keys"][0]
    full = [entry | {"name": f"n{number}"} for number in range(KEYS_MAX)]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": full}))
    with pytest.raises(KithError, match="already"):
        keys.add("b", ["chat"], 1)
    with pytest.raises(KithError, match="no key named"):
        keys.remove("b")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"keys": [1]}',
        '{"keys": [{"name": "a", "sha256": "x", "scopes": ["chat"]}]}',
        '{"keys": [{"name": "a", "sha256": "", "scopes": "chat"}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_lets_nobody_in(keys: ApiKeys, tmp_path: Path, content: str) -> None:
    keys.add("a", ["chat"], 1)
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(KithError) as caught:
        keys.find("")
    assert caught.value.code == "keys-damaged"
