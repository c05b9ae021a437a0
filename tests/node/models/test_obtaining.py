"""The file for `kith up --model`: what is here is taken, what is not is fetched or refused."""

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest

from node.errors import KithError
from node.models.obtaining import Tenths, obtain
from node.models.source import resolve_model
from node.models.store import ModelStore
from scripts.daemons import until
from tests.conftest import DaemonFactory
from tests.node.models.gguf_files import gguf_bytes, write_gguf
from tests.node.models.hub_server import COMMIT, REPO, SOURCE, HubUp, serving


def test_model_of_the_hub_is_fetched_once(hub_up: HubUp, tmp_path: Path) -> None:
    said: list[str] = []
    with hub_up():
        path = obtain(SOURCE, said.append)
    assert path == tmp_path / "T.gguf"
    assert said[0] == f"Fetching {SOURCE}."
    said.clear()
    assert obtain(SOURCE, said.append) == path  # also without any network
    assert obtain("T", said.append) == path
    assert said == []


def test_another_revision_than_the_one_that_is_here_is_not_taken_for_it(hub_up: HubUp) -> None:
    with hub_up() as hub:
        hub.revisions |= {"v1": COMMIT, "v2": "2" * 40}
        path = obtain(f"{SOURCE}@v1", print)
        hub.files["T.gguf"] = gguf_bytes(fill=b"2")
        with pytest.raises(KithError, match="with other content"):
            obtain(f"{SOURCE}@v2", print)
    for named in (SOURCE, f"{SOURCE}@v1", f"{SOURCE}@{COMMIT}", f"{SOURCE}@{COMMIT[:8]}"):
        assert obtain(named, print) == path  # also without any network
    with pytest.raises(KithError, match="was not pulled yet"):
        resolve_model(f"{SOURCE}@v2")


def test_the_same_file_is_known_by_each_revision_that_it_was_pulled_by(hub_up: HubUp) -> None:
    with hub_up() as hub:
        hub.revisions |= {"v1": COMMIT, "v2": "2" * 40}
        path = obtain(SOURCE, print)
        assert obtain(f"{SOURCE}@v1", print) == obtain(f"{SOURCE}@v2", print) == path
    for named in (SOURCE, f"{SOURCE}@main", f"{SOURCE}@v1", f"{SOURCE}@v2", f"{SOURCE}@{COMMIT}"):
        assert obtain(named, print) == path
    assert len(hub.ranges) == 1


def test_what_an_earlier_release_pulled_is_taken_for_any_name(hub_up: HubUp) -> None:
    with hub_up():
        path = obtain(SOURCE, print)
    manifest = path.with_name("T.gguf.json")
    kept = json.loads(manifest.read_text())
    kept.pop("pulled_as", None)
    manifest.write_text(json.dumps(kept))
    assert obtain(f"{SOURCE}@v1", print) == path


def test_what_is_named_and_not_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITH_MODELS", str(tmp_path))
    write_gguf(tmp_path / "own" / "x.gguf")
    assert obtain(str(tmp_path / "own" / "x.gguf"), print) == tmp_path / "own" / "x.gguf"
    with pytest.raises(KithError, match="there is no model file"):
        obtain("Nothing", print)


def test_progress_is_said_in_tenths() -> None:
    said: list[str] = []
    tell = Tenths(said.append)
    for done in range(0, 1001, 10):
        tell(done * 1_000_000, 1_000_000_000)
    assert 8 <= len(said) <= 10
    assert said[0] == "Fetched 100 of 1000 MB."


async def test_the_end_of_a_node_ends_what_it_fetches_at_once(daemon: DaemonFactory, tmp_path: Path) -> None:
    """The Hub stands still in the midst of the file: whoever reads from it would wait for ten seconds and try again."""
    content = gguf_bytes(elements=6_000_000)
    models = tmp_path / "models"
    with serving({"T.gguf": content}) as hub:
        hub.stall_after = 22_000_000  # the library hands over ten megabytes at a time
        environment = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "KITH_MODELS": str(models)}
        arguments = ["--engine", "llama", "--model", f"hf://{REPO}/T.gguf"]
        node = daemon(*arguments, environment=environment)
        await node.ready(engine=False)
        store = ModelStore(models)

        async def came() -> bool:
            return any(size >= 20_000_000 for _, size in store.unfinished())

        await until(came, 30.0, "most of the file came")
        began = time.monotonic()
        await asyncio.to_thread(node.end)
        assert time.monotonic() - began < 4.0
        [(_, size)] = store.unfinished()
        hub.stall_after = 0
        hub.go_on.set()
        node.start()
        await until(lambda: _is_there(store), 30.0, "the rest came")
        assert hub.ranges[-1] == f"bytes={size}-"
        assert size >= 20_000_000


async def _is_there(store: ModelStore) -> bool:
    return bool(store.entries())


async def test_the_end_of_a_node_ends_the_program_that_fetches_the_default_model(
    daemon: DaemonFactory, tmp_path: Path
) -> None:
    """Nothing of it is left running: the daemons' fixture looks for that."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    index = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{index.sockets[0].getsockname()[1]}/"
    environment = {"KITH_MODELS": str(tmp_path / "models"), "NO_PROXY": "127.0.0.1", "PIP_CONFIG_FILE": "/dev/null"}
    environment |= {"PIP_INDEX_URL": url, "PIP_EXTRA_INDEX_URL": "", "UV_DEFAULT_INDEX": url, "UV_NO_CONFIG": "1"}
    async with index:
        node = daemon("--engine", "llama", environment=environment)
        await node.ready(engine=False)
        async with asyncio.timeout(30):
            await asked.wait()
        began = time.monotonic()
        await asyncio.to_thread(node.end)
        assert time.monotonic() - began < 6.0
