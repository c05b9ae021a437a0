"""docs/security.md names tests that exist, and its table of roles is the one that is in force."""

import re
from pathlib import Path

import pytest

from mesh import authorisation
from mesh.certificates import Role

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def part(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, heading
    return found[1]


def rows(heading: str) -> list[list[str]]:
    """The table's rows below its head, as cells."""
    lines = [line for line in part(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("row", rows("Threat, answer, test"), ids=lambda row: row[0])
def test_every_threat_names_a_test_that_exists(row: list[str]) -> None:
    _, answer, named = row
    assert answer
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", named)
    assert found, named
    for file, name in found:
        text = (ROOT / file).read_text(encoding="utf-8")
        wanted = rf"^(async )?def {name}\(" if name else r"^(async )?def test_"
        assert re.search(wanted, text, re.M), f"{file} has no {name or 'test'}"


def test_every_answer_to_strangers_and_members_is_in_the_table() -> None:
    """A test of tests/security/ that no threat names is missing from the page."""
    named = part("Threat, answer, test")
    for file in ("test_calls.py", "test_facts.py", "test_revocation.py"):
        assert f"tests/security/{file}" in named


def test_the_table_of_roles_is_the_one_in_force() -> None:
    asks = {"calls": authorisation.may_call, "says": authorisation.may_send, "authors": authorisation.may_author}
    told = set()
    for what, *cells in rows("Who may do what"):
        verb, name = re.match(r"(\w+) `(\w+)`", what).groups()  # type: ignore[union-attr]
        told.add((verb, name))
        may = [asks[verb](role, name) for role in Role]
        assert cells == ["yes" if one else "no" for one in may], what
    assert {name for verb, name in told if verb == "calls"} == authorisation.RPCS.keys()


def test_the_heads_of_the_roles_are_the_roles() -> None:
    head = next(line for line in part("Who may do what").splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in head.strip("|").split("|")[1:]] == [role.value for role in Role]
