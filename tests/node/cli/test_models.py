"""`kith model` on a real folder, and between two real nodes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.advising import parse_bytes
from node.errors import ExitCode
from node.models.store import hold
from scripts.daemons import Daemon, until
from tests.conftest import DaemonFactory
from tests.node.cli.conftest import Kith
from tests.node.cli.local_node import LocalNode
from tests.node.models.gguf_files import write_gguf


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KITH_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_file_is_pulled_listed_shown_and_removed(kith: Kith, folder: Path, tmp_path: Path) -> None:
    assert "no model in" in kith("model", "list").out
    content = write_gguf(tmp_path / "Tiny.gguf")
    digest = hashlib.sha256(content).hexdigest()
    assert "Tiny.gguf is at" in kith("model", "pull", str(tmp_path / "Tiny.gguf")).out
    assert "Tiny.gguf was already at" in kith("model", "pull", str(tmp_path / "Tiny.gguf")).out
    [row] = kith("model", "list", "--json").json["models"]
    assert (row["name"], row["sha256"], row["licence"], row["in_use"]) == ("Tiny.gguf", digest, "apache-2.0", False)
    assert "F32" in kith("model", "list").out
    shown = kith("model", "show", "Tiny", "--verify", "--json").json
    assert shown["verified_sha256"] == digest
    assert "verified now" in kith("model", "show", "Tiny", "--verify").out
    removed = kith("model", "rm", "Tiny", "--json").json
    assert removed == {"removed": "Tiny.gguf", "freed_bytes": 0}  # it is linked to the file it came from
    assert (tmp_path / "Tiny.gguf").exists()


def test_file_in_use_is_not_removed(kith: Kith, folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "Tiny.gguf")
    kith("model", "pull", str(tmp_path / "Tiny.gguf"))
    (tmp_path / "Tiny.gguf").unlink()
    held = hold(folder / "Tiny.gguf")
    assert held is not None
    assert "a node" in kith("model", "list").out
    refused = kith("model", "rm", "Tiny")
    assert "in use" in refused.err
    assert refused.code == ExitCode.UNAVAILABLE
    held.close()
    assert kith("model", "rm", "Tiny", "--json").json["freed_bytes"] > 0


def test_wrong_words_are_answered(kith: Kith, folder: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "Tiny.gguf")
    for arguments, code in (
        (("rm",), ExitCode.USAGE),
        (("rm", "Tiny", "--unfinished"), ExitCode.USAGE),
        (("rm", "Tiny"), ExitCode.NOT_FOUND),
        (("show", "Tiny"), ExitCode.NOT_FOUND),
        (("show", "--verify"), ExitCode.USAGE),
        (("pull", "--name", "x"), ExitCode.USAGE),
        (("pull", "hf://a/b"), ExitCode.BAD_INPUT),
        (("pull", "peer:anna"), ExitCode.BAD_INPUT),
        (("pull", "peer:anna/Tiny"), ExitCode.UNREACHABLE),
        (("pull", str(tmp_path / "none.gguf")), ExitCode.BAD_INPUT),
        (("pull", str(tmp_path / "Tiny.gguf"), "--sha256", "12"), ExitCode.USAGE),
        (("pull", str(tmp_path / "Tiny.gguf"), "--sha256", "1" * 64), ExitCode.BAD_INPUT),
        (("pull", str(tmp_path / "Tiny.gguf"), "--name", "../x"), ExitCode.BAD_INPUT),
    ):
        outcome = kith("model", *arguments)
        assert outcome.code == code, (arguments, outcome.err)


def test_unfinished_pulls_are_told_and_removed(kith: Kith, folder: Path) -> None:
    (folder / ".unfinished").mkdir(parents=True)
    (folder / ".unfinished" / f"{'a' * 64}.part").write_bytes(b"12345")
    assert "1 unfinished, 5 B" in kith("model", "list").err
    assert kith("model", "rm", "--unfinished", "--json").json["freed_bytes"] == 5


def test_progress_is_a_line_for_each_tenth_without_a_terminal(kith: Kith, folder: Path, local_node: LocalNode) -> None:
    pulled = kith("model", "pull", "peer:anna/Tiny")
    assert "Tiny.gguf is at /models/Tiny.gguf" in pulled.out
    lines = pulled.err.splitlines()
    assert lines[0] == "fetching 1.0 GiB"
    assert lines[-1] == "1.0 GiB of 1.0 GiB"
    assert len(lines) == 9
    quiet = kith("model", "pull", "peer:anna/Tiny", "--json")
    assert quiet.err == ""
    assert quiet.json["bytes"] == 1 << 30


def kith_of(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli.main", "--data-dir", str(node.data_dir), *arguments]
    environment = node._surroundings()
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.slow
def test_from_node_to_node(daemon: DaemonFactory, tmp_path: Path) -> None:
    """Over mTLS, by name and by hash, as the CLI asks its own node."""
    stores = {name: tmp_path / f"models-{name}" for name in ("anna", "ben")}
    content = write_gguf(stores["anna"] / "Tiny.gguf", elements=1_000_000)

    async def two() -> tuple[Daemon, Daemon]:
        anna = daemon(name="anna", environment={"KITH_MODELS": str(stores["anna"])})
        at = (await anna.ready()).addresses[0]
        ben = daemon("--seed", f"{at.host}:{at.port}", name="ben", environment={"KITH_MODELS": str(stores["ben"])})
        await ben.ready()

        async def met() -> bool:
            return {node.name for node in await ben.nodes() if node.profile.agents} == {"anna", "ben"}

        await until(met, 20.0, "both in sight")
        return anna, ben

    anna, ben = asyncio.run(two())
    refused = kith_of(ben, "model", "pull", "peer:anna/Tiny")
    assert "without its hash" in refused.stderr, refused
    assert kith_of(anna, "model", "pull", str(stores["anna"] / "Tiny.gguf")).returncode == 0
    got = kith_of(ben, "model", "pull", "peer:anna/Tiny", "--json")
    assert got.returncode == 0, got
    digest = hashlib.sha256(content).hexdigest()
    assert json.loads(got.stdout)["sha256"] == digest
    assert (stores["ben"] / "Tiny.gguf").read_bytes() == content
    [row] = json.loads(kith_of(ben, "model", "list", "--json").stdout)["models"]
    assert row["source"].startswith("peer:")
    assert kith_of(ben, "model", "rm", "Tiny").returncode == 0
    by_hash = kith_of(ben, "model", "pull", digest, "--name", "Renamed")
    assert by_hash.returncode == 0, by_hash
    assert (stores["ben"] / "Renamed.gguf").read_bytes() == content
    nobody = kith_of(ben, "model", "pull", "peer:clara/Tiny")
    assert nobody.returncode == ExitCode.NOT_FOUND
    assert "no live node" in nobody.stderr


def test_advice_names_a_model_why_and_what_a_hosted_one_costs(kith: Kith, folder: Path) -> None:
    said = kith("model", "advise", "--task", "summarise", "--memory", "8G").out
    for words in (
        *("Choice", "why:", "kith model pull hf://", "estimated from memory that is read at", "energy:", "compared on"),
        *("Hosted:", "$", "a million tokens", "--engine openai --engine-url https://", "(thinks)", "32,768"),
    ):
        assert words in said, words
    advice = kith("model", "advise", "--memory", "8G", "--json").json
    assert advice["choice"] in {row["name"] for row in advice["local"] if row["fits"]}
    assert advice["model_memory_bytes"] == 8 << 30
    for row in advice["local"]:
        assert row["card"].startswith("https://huggingface.co/")
        assert row["checked"]
        assert bool(row["page"]) == bool(row["source"])
    # What can be said of every model: size, quantisation, memory, speed, licence, languages, seconds.
    asked = ("bytes", "quantization", "needs_bytes", "estimated_decode_tokens_per_s", "licence", "languages")
    assert all(row[key] for row in advice["local"] for key in (*asked, "estimated_seconds", "context_tokens"))
    assert all(row["price_date"] and row["languages"] for row in advice["hosted"])
    assert kith("model", "advise", "--memory", "10M", "--json").json["choice"] is None
    assert "none fits" in kith("model", "advise", "--memory", "10M").out


def test_advice_uses_what_the_node_measured_and_lists_the_mesh(kith: Kith, folder: Path, local_node: LocalNode) -> None:
    advice = kith("model", "advise", "--mesh", "--json").json
    assert "what this node measured with" in advice["rates_from"]
    assert {row["node_name"] for row in advice["mesh"]} >= {"anna"}
    assert "In the mesh now: SmolLM2-135M-Instruct on anna" in kith("model", "advise", "--mesh").out


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("8G", 8 << 30), ("1.5g", 3 << 29), ("512MiB", 512 << 20), ("9", 9)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_wrong_words_of_advise_are_answered(kith: Kith, folder: Path) -> None:
    for arguments in (("--task", "cook"), ("--memory", "much"), ("--memory", "0")):
        assert kith("model", "advise", *arguments).code == ExitCode.USAGE
    assert kith("model", "advise", "--mesh").code == ExitCode.UNREACHABLE
