"""The ready-made engine with the real model, in a child process with all its limits."""

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from mesh.wire import engine_pb2
from node.abilities import FILE_ABILITIES
from node.engine import xllamacpp
from node.engine.threads import cores
from node.errors import KithError
from tests.node.engine.engines import answer, ask, idle, running
from tests.node.engine.gguf_files import sample

pytest.importorskip("xllamacpp")


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Where sockets are made."""
    folder = Path("/tmp") / f"kith-test-{os.getpid()}"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.model
async def test_profile_says_what_it_can_and_nothing_is_open_to_others(model_path: Path, place: Path) -> None:
    async with running(model_path, engine="xllamacpp", ctx=1024, slots=2) as watched:
        loaded = watched.engine.loaded
        assert loaded is not None
        assert set(loaded.abilities) == set(FILE_ABILITIES["xllamacpp"])  # the model's template knows no tools
        assert (loaded.context_tokens, loaded.slots, loaded.threads) == (1024, 2, 1)
        assert (loaded.architecture, loaded.quantization, loaded.licence) == ("llama", "Q4_1", "apache-2.0")
        assert "AVX" in loaded.system_info or "NEON" in loaded.system_info
        assert watched.engine.pid is not None
        child = psutil.Process(watched.engine.pid)
        assert not child.net_connections("inet")
        [mode] = modes_in(place)
        assert mode & 0o077 == 0
        if sys.platform == "linux":
            limits = limits_of(child.pid)
            assert limits["Max data size"] != "unlimited"
            assert limits["Max core file size"] == "0"
    assert not modes_in(place)


@pytest.mark.model
async def test_cores_are_shared_with_other_engines(model_path: Path, place: Path) -> None:
    """With this process at the least: it has the library as well."""
    async with running(model_path, engine="xllamacpp", ctx=256, threads=0) as watched:
        loaded = watched.engine.loaded
        assert loaded is not None
        assert 1 <= loaded.threads <= max(1, cores() // 2)
        assert any(f"--threads {loaded.threads}" in line for line in watched.lines)


def modes_in(folder: Path) -> list[int]:
    return [path.stat().st_mode for path in folder.iterdir()]


def limits_of(pid: int) -> dict[str, str]:
    """Name → hard limit."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[47:68].strip() for line in lines}


@pytest.mark.model
@pytest.mark.slow
async def test_answers_go_on_are_held_scored_and_cancelled(model_path: Path, place: Path) -> None:
    async with running(model_path, engine="xllamacpp", ctx=1024, slots=2) as watched:
        engine = watched.engine
        question = "Tell me about the capital of France."
        whole = ask(question, 16)
        whole.want_tokens = True
        events = [event async for event in engine.generate(whole)]
        text = "".join(event.delta.text for event in events)
        tokens = [token for event in events for token in event.delta.token_ids]
        rest = ask(question, 8)
        rest.continue_tokens.extend(tokens[:8])
        assert text.endswith((await answer(engine, rest))[0])

        held = ask(question, 20)
        held.grammar = 'root ::= "maybe"'
        assert (await answer(engine, held))[:2] == ("maybe", "stop")

        told = ask(question, 4)
        told.logprobs, told.top_logprobs = True, 2
        logprobs = [one async for event in _deltas(engine.generate(told)) for one in event.logprobs]
        score = engine_pb2.ScoreRequest(
            messages=told.messages, continuations=[b"".join(one.piece for one in logprobs).decode()]
        )
        [scored] = (await engine.score(score)).log_probabilities
        assert scored == pytest.approx(sum(one.logprob for one in logprobs), abs=0.05)

        steps = (await engine.stats()).steps
        stream = engine.generate(ask("Write a long story.", 900))
        async for event in stream:
            if event.delta.text:
                break
        await stream.aclose()
        assert (await idle(engine)).steps >= steps > 0

        os.kill(engine.pid or 0, signal.SIGKILL)
        await watched.until(lambda: engine.state == "ready" and watched.states.count("ready") == 2)
        assert (await answer(engine, ask("Hi", 2)))[0]


async def _deltas(
    events: "AsyncIterator[engine_pb2.GenerateEvent]",
) -> "AsyncIterator[engine_pb2.GenerateEvent.Delta]":
    async for event in events:
        if event.WhichOneof("event") == "delta":
            yield event.delta


async def test_file_that_llama_cpp_can_not_load_is_a_bad_model(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(sample().build())
    with pytest.raises(KithError) as caught:
        async with running(path, engine="xllamacpp"):
            pass
    assert caught.value.code == "bad-model"


def test_folders_of_dead_engines_are_removed_and_others_kept(place: Path) -> None:
    import socket

    dead, alive = place / "kith-engine-dead", place / "kith-engine-alive"
    for folder in (dead, alive):
        folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(dead / "model.sock"))
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(str(alive / "model.sock"))
        serving.listen()
        made = xllamacpp._new_folder()
        assert made.stat().st_mode & 0o077 == 0
        assert {path.name for path in place.iterdir()} == {"kith-engine-alive", made.name}


def test_release_with_another_interface_says_so() -> None:
    class Params:
        __slots__ = ()

    class Library:
        __version__ = "1999.1"
        CommonParams = Params

    with pytest.raises(KithError, match=r"1999\.1 is not a release"):
        xllamacpp.start_server(Library, engine_pb2.LoadModel(path="x"), 512, 1, 1, 1, "s", "k")
