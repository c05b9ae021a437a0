"""The tree as a whole: lint, format, types, import rules, generated code, and words that must not appear.

They are tests, so that one command and one closing line tell all.
"""

import ast
import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PACKAGES = ("node", "mesh", "solver")
SOURCES = [
    path
    for folder in (*PACKAGES, "scripts", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "wire" not in path.parts and "__pycache__" not in path.parts
] + [ROOT / "kithmesh.py"]

#: Modules that turn bytes into objects or code: what comes from others is protobuf, JSON, TOML or checked by hand.
PICKLES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "code", "codeop"}
#: Lines of a module at most; a file that needs more holds two ideas.
MODULE_LINES_MAX = 500


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def test_lint() -> None:
    run(str(BIN / "ruff"), "check", ".")


def test_format() -> None:
    run(str(BIN / "ruff"), "format", "--check", ".")


def test_types() -> None:
    run(str(BIN / "mypy"), *PACKAGES, "kithmesh.py", "scripts", "tests")


def test_import_rules() -> None:
    run(str(BIN / "lint-imports"))


def test_wire_is_generated_from_proto(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "proto", tmp_path],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = tmp_path / "mesh" / "wire"
    committed = ROOT / "mesh" / "wire"
    names = {path.name for path in made.iterdir()}
    assert names == {path.name for path in committed.iterdir()} - {"__init__.py", "__pycache__"}
    _, different, errors = filecmp.cmpfiles(made, committed, sorted(names), shallow=False)
    assert not different, f"{different} differ from proto/: run scripts/proto"
    assert not errors


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path: Path) -> None:
    """Each module says why it exists, and holds nothing that runs text as code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    assert path.read_text(encoding="utf-8").count("\n") <= MODULE_LINES_MAX, "too long: two ideas?"
    for found in ast.walk(tree):
        match found:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                pytest.fail(f"line {found.lineno}: {name}()")
            case ast.Import(names=names):
                imported = {alias.name.split(".")[0] for alias in names}
                assert not imported & PICKLES, f"line {found.lineno}: {imported}"
            case ast.ImportFrom(module=str(module)):
                assert module.split(".")[0] not in PICKLES, f"line {found.lineno}"
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                pytest.fail(f"line {found.lineno}: shell=True")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                pytest.fail(f"line {found.lineno}: allow_pickle=True")
            case ast.Attribute(value=ast.Name(id="jinja2"), attr="Environment" | "Template" as name):
                pytest.fail(f"line {found.lineno}: jinja2.{name} is no sandbox")
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" as name):
                pytest.fail(f"line {found.lineno}: os.{name}")


def test_machines_hold_no_pickled_or_imported_randomness() -> None:
    """`hash()` of text differs between processes: the machines must not lean on it, nor on the order of a set."""
    for package in ("mesh", "solver"):
        for path in (ROOT / package).rglob("*.py"):
            if "wire" in path.parts:
                continue
            calls = [
                found.lineno
                for found in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(found, ast.Call) and isinstance(found.func, ast.Name) and found.func.id == "hash"
            ]
            assert not calls, f"{path.relative_to(ROOT)}: hash() in lines {calls}"


def test_pages_of_docs_that_are_named_are_there() -> None:
    """In code and contract, by `docs/NAME`; in the pages themselves, by links to files."""
    named = {
        (path, ROOT / name)
        for path in [*SOURCES, *(ROOT / "proto").glob("*.proto"), ROOT / "pyproject.toml"]
        for name in re.findall(r"(?<![\w/])docs/[\w-]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]:
        links = re.findall(r"\]\(([^)#:\s]+)[^):]*\)", path.read_text(encoding="utf-8"))
        named |= {(path, path.parent / name) for name in links}
    assert not [f"{path.relative_to(ROOT)}: {page}" for path, page in sorted(named) if not page.exists()]


def test_headline_figures_are_those_that_were_measured() -> None:
    """docs/guarantees.md repeats some of docs/benchmarks.md: the same keys, the same figures."""
    table = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").partition("| bench: key |")[2]
    rows = [row for row in table.partition("\n\n")[0].splitlines() if row.startswith("| ")]
    told = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    headlines = [(re.findall(r"`([\w-]+)`", keys)[1:], figure) for _, keys, figure in told]
    assert 6 <= len(headlines) <= 10
    measured = [row for row in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines() if "|" in row]
    for keys, figure in headlines:
        for key, one in zip(keys, figure.split(", "), strict=True):
            where = [row for row in measured if f"`{key}`" in row]
            assert any(re.search(rf"(?<![\d.]){re.escape(one)}(?![\d.]*\d)", row) for row in where), f"{key}: {one}"


def test_scripts_are_executable() -> None:
    for path in sorted((ROOT / "scripts").iterdir()):
        if path.is_file() and path.suffix == "":
            assert os.access(path, os.X_OK), f"{path.name} is not executable"
            assert re.match(r"#!(/bin/sh|/usr/bin/env )", path.read_text(encoding="utf-8")), path.name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
