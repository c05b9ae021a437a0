"""Several engines in one node, as real processes: loaded on demand, unloaded when another needs the room."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from mesh.wire import engine_pb2
from node import engines as engines_module
from node import gguf
from node.abilities import FILE_ABILITIES
from node.config import FILE_ENGINES, NodeConfig
from node.engine import process as process_module
from node.engine.installed import installed
from node.engine.process import EngineProcess
from node.engines import FIRST, Engines, Further, agent_profile, engine_config, planned
from node.errors import KithError
from tests.node.engine import tiny_embedders
from tests.node.engine.engines import PATIENCE, running
from tests.node.engine.gguf_files import sample


class Node:
    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.config = NodeConfig(data_dir=folder, engine="echo", echo_tokens_per_s=5000.0)
        self.first = EngineProcess(self.config, None, lambda _line: None)
        self.changes = 0
        self.engines = Engines(self.first, budget_bytes, self.changed)

    def changed(self) -> None:
        self.changes += 1

    def add(self, name: str, needs_bytes: int, pace: float = 5000.0, config: NodeConfig | None = None) -> Further:
        config = config or NodeConfig(data_dir=self.config.data_dir, engine="echo", echo_tokens_per_s=pace)
        process = EngineProcess(config, None, lambda _line: None)
        return self.engines.add(Path(f"/m/{name}.gguf"), process, needs_bytes, engine_pb2.EngineLoaded(model=name))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path, 100)
    await one.first.start()
    one.engines.first_bytes = 20
    yield one
    await one.engines.stop()


def up(node: Node) -> set[str]:
    return {one.agent for one in node.engines.further.values() if one.is_ready}


async def say(engine: Further, words: int = 5) -> str:
    text = ""
    request = engine_pb2.GenerateRequest(prompt=" ".join(f"w{n}" for n in range(words)), max_tokens=words)
    async for event in engine.generate(request):
        text += event.delta.text
    return text


async def test_further_one_is_loaded_when_it_is_asked_for(node: Node) -> None:
    one = node.add("A", 30)
    assert node.engines.of("a") is one
    assert node.engines.of("") is node.engines.of(FIRST) is node.first
    assert up(node) == set()
    assert one.loaded is not None
    assert one.loaded.model == "A"  # as its header promises
    assert await one.count_tokens(["one two"])
    assert up(node) == {"a"}
    assert one.calibrated is not None
    assert await say(one)
    assert node.changes >= 2
    with pytest.raises(KithError) as caught:
        node.engines.of("b")
    assert caught.value.code == "no-agent"


async def test_least_recently_used_one_makes_room(node: Node) -> None:
    a, b, c = node.add("A", 40), node.add("B", 40), node.add("C", 40)
    await a.start()
    await b.start()
    await a.count_tokens(["again"])
    assert up(node) == {"a", "b"}
    await c.start()
    assert up(node) == {"a", "c"}
    measured = b.calibrated
    await b.start()
    assert up(node) == {"b", "c"}
    assert b.calibrated is measured  # what was measured is kept
    assert node.first.state == "ready"


async def test_what_loading_takes_is_in_the_profile_until_it_is_loaded(node: Node) -> None:
    one, other = node.add("A", 50), node.add("B", 50)
    assert one.planned is not None
    one.planned.model_bytes = 1_000_000_000
    assert one.load_wait_s == pytest.approx(engines_module.START_S + 2.0)  # not measured: 500 MB/s
    assert node.first.loaded is not None
    node.first.loaded.model_bytes, node.first.loaded.load_seconds = 300_000_000, 3.0
    assert one.load_wait_s == pytest.approx(engines_module.START_S + 10.0)  # as the first model was read
    profile = agent_profile(one.agent, "echo", one, b"")
    assert profile.load_wait_seconds == pytest.approx(engines_module.START_S + 10.0)
    assert agent_profile(FIRST, "echo", node.first, b"").load_wait_seconds == 0.0
    await one.start()
    assert one.load_wait_s == 0.0
    assert agent_profile(one.agent, "echo", one, b"").load_wait_seconds == 0.0
    changes = node.changes
    await other.start()  # the first one has to go, and that is told
    assert node.changes >= changes + 2
    assert 0.0 < one.load_wait_s < 10.0  # as it took the last time


async def test_engine_in_use_is_not_unloaded_but_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, other = node.add("Slow", 50, pace=5.0), node.add("Other", 50)
    request = engine_pb2.GenerateRequest(prompt="one two three four five six seven eight", max_tokens=100)
    events = slow.generate(request)
    await anext(events)
    monkeypatch.setattr(engines_module, "ROOM_WITHIN_S", 0.05)
    with pytest.raises(KithError, match="in use by other models") as caught:
        await other.start()
    assert caught.value.code == "engine-not-ready"  # a task is given back then
    assert caught.value.retry_after_s > 0
    monkeypatch.undo()
    waiting = asyncio.create_task(other.start())
    await asyncio.sleep(0)
    await events.aclose()
    await waiting
    assert up(node) == {"other"}


async def test_requests_at_the_same_time_load_it_once(node: Node) -> None:
    one = node.add("A", 30)
    answers = await asyncio.gather(*(say(one) for _ in range(4)))
    assert len(set(answers)) == 1
    assert one.users == 0


async def test_what_never_fits_says_so(node: Node) -> None:
    one = node.add("Huge", 90)
    with pytest.raises(KithError, match="more than") as caught:
        await one.start()
    assert caught.value.code == "engine-not-ready"
    assert "--memory-budget" in caught.value.remedy
    assert one.state == "ready"  # the file is sound


async def test_model_that_can_not_be_loaded_is_given_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = NodeConfig(data_dir=node.config.data_dir, engine="llama")  # without a file
    one = node.add("Broken", 10, config=broken)
    for _ in range(2):
        with pytest.raises(KithError, match="no model file"):
            await one.start()
        assert one.failures == 1  # it is not tried again at once
    monkeypatch.setattr(engines_module, "AGAIN_AFTER_S", 0.0)
    for _ in range(2):
        with pytest.raises(KithError):
            await one.start()
    assert one.state == "failed"


async def test_crashed_one_comes_back(node: Node) -> None:
    one = node.add("A", 50)  # of 100, with 20 for the first: its own remains do not count beside it
    await one.start()
    before = one._process.pid
    await one._process.stop()  # as if its supervisor had given it up
    assert not one.is_ready
    assert await say(one)
    assert one._process.pid != before


def kill(one: Further) -> None:
    assert one._process.pid is not None
    os.kill(one._process.pid, signal.SIGKILL)


async def refused_until_up(one: Further) -> set[str]:
    """Ask one that was killed, again and again, until it answers. Returns the codes it refused with."""
    codes: set[str] = set()
    while True:
        try:
            await say(one)
            return codes
        except KithError as error:
            codes.add(error.code)
            await asyncio.sleep(0)


async def test_requests_do_not_start_one_that_keeps_dying_before_its_pause_is_over(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "RESTARTS_MAX", 2)
    monkeypatch.setattr(process_module, "RESTARTS_WINDOW_S", 1.0)
    monkeypatch.setattr(process_module, "BACKOFF_FIRST", 0.01)
    one = node.add("A", 30)
    await one.start()
    began = time.monotonic()
    for _ in range(5):
        kill(one)
        assert await refused_until_up(one) <= {"engine-gone", "engine-not-ready"}
    assert time.monotonic() - began > 2.0, "two restarts a second"
    assert one.failures == 0, "it is a sound model"


async def test_one_in_its_pause_holds_up_no_other_and_keeps_its_pause_when_it_is_unloaded(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "RESTARTS_MAX", 1)
    monkeypatch.setattr(process_module, "RESTARTS_WINDOW_S", 10_000.0)
    monkeypatch.setattr(process_module, "BACKOFF_FIRST", 0.01)
    one, beside, instead = node.add("A", 40), node.add("B", 40), node.add("C", 40)
    await one.start()
    kill(one)
    await refused_until_up(one)
    kill(one)
    while one._process.state != "restarting":  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0)
    with pytest.raises(KithError, match="can not be loaded now") as caught:
        await one.start()
    assert caught.value.code == "engine-not-ready"  # a task is given back then
    assert caught.value.retry_after_s > 5_000.0
    async with node.engines._loading:  # another model is being loaded
        with pytest.raises(KithError, match="can not be loaded now"):
            await asyncio.wait_for(one.start(), PATIENCE)
    assert one._process.state == "restarting", "its supervisor goes on"
    await beside.start()
    await instead.start()  # there is no room for what the one in its pause would take
    assert up(node) == {"b", "c"}
    assert one._process.state == "stopped", "its supervisor would bring it up beside the others"
    with pytest.raises(KithError, match="can not be loaded now") as caught:
        await one.start()
    assert caught.value.retry_after_s > 5_000.0
    assert up(node) == {"b", "c"}


async def test_names_are_unique_and_plain(node: Node) -> None:
    names = [node.add(name, 1).agent for name in ("Qwen3 4B:Q4", "qwen3-4b-q4", "default", "…")]
    assert names == ["qwen3-4b-q4", "qwen3-4b-q4-2", "default-2", "model"]
    for number in range(20):
        if len(node.engines.further) + 1 < engines_module.MODELS_MAX:
            node.add(str(number), 1)
    with pytest.raises(KithError, match="at most 16"):
        node.add("one more", 1)


async def finished(engine: Further, request: engine_pb2.GenerateRequest) -> engine_pb2.GenerateEvent.Finished:
    return [event async for event in engine.generate(request)][-1].finished


async def test_the_loading_of_its_model_is_told_as_waiting_and_taken_from_the_usefulness(node: Node) -> None:
    one = node.add("A", 30)
    given: list[float] = []
    generate = one._process.generate

    def noted(request: engine_pb2.GenerateRequest) -> AsyncGenerator[engine_pb2.GenerateEvent, None]:
        given.append(request.useful_seconds)
        return generate(request)

    one._process.generate = noted  # type: ignore[method-assign]
    request = engine_pb2.GenerateRequest(prompt="one two", useful_seconds=500.0)
    answer, scored, embedded = await asyncio.gather(
        finished(one, request),
        one.score(engine_pb2.ScoreRequest(prompt="a", continuations=["b", "c"])),
        one.embed(engine_pb2.EmbedRequest(texts=["a"])),
    )
    assert one.took_s > 0.0
    for usage in (answer.usage, scored.usage, embedded.usage):
        assert usage.queue_seconds >= one.took_s
    assert 0.0 < given[0] <= 500.0 - one.took_s
    again = await finished(one, request)
    assert given[1] > given[0], "it is loaded"
    assert again.usage.queue_seconds < answer.usage.queue_seconds


async def test_what_is_of_no_use_when_its_model_is_loaded_ends_and_the_load_goes_on(node: Node) -> None:
    one = node.add("A", 30)
    for asked in (
        finished(one, engine_pb2.GenerateRequest(prompt="one two", useful_seconds=0.001)),
        one.score(engine_pb2.ScoreRequest(prompt="a", continuations=["b"], useful_seconds=0.001)),
        one.embed(engine_pb2.EmbedRequest(texts=["a"], useful_seconds=0.001)),
    ):
        with pytest.raises(KithError, match="not loaded by then") as caught:
            await asked
        assert caught.value.code == "too-late"
    assert one.users == 0
    await one.start()
    assert one._process.state == "ready"


async def test_a_load_waits_for_those_before_it_and_that_is_told(node: Node) -> None:
    first, second, third = (node.add(name, 10) for name in "ABC")
    assert node.engines.load_wait_s("a") == 0.0, "nothing is loaded: the profile says what it takes"
    for one, took_s in ((first, 10.0), (second, 20.0), (third, 40.0)):
        one.took_s = took_s
    loads = [asyncio.create_task(one.start()) for one in (first, second)]
    while len(node.engines._wanted) < 2:  # noqa: ASYNC110 - until both tasks have begun
        await asyncio.sleep(0)
    assert node.engines.load_wait_s("a") <= 10.0
    assert 20.0 < node.engines.load_wait_s("b") <= 30.0
    assert 60.0 < node.engines.load_wait_s("c") <= 70.0
    assert node.engines.load_wait_s(FIRST) == 0.0
    await asyncio.gather(*loads)
    assert [node.engines.load_wait_s(agent) for agent in "abc"] == [0.0, 0.0, 0.0]


def header_of(folder: Path, template: str) -> gguf.GgufHeader:
    path = folder / "tiny.gguf"
    file = sample()
    file.keys = [entry for entry in file.keys if entry[0] != "tokenizer.chat_template"]
    path.write_bytes(file.text("tokenizer.chat_template", template).build())
    return gguf.read_header(path)


@pytest.mark.parametrize(
    ("template", "tools"),
    [("{% for message in messages %}{{ message.content }}{% endfor %}", False), ("{% if tools %}{% endif %}", True)],
)
def test_what_is_planned_of_a_further_model_follows_its_header(tmp_path: Path, template: str, tools: bool) -> None:
    config = NodeConfig(data_dir=tmp_path, engine="llama", ctx=256, slots=3, adapters=("law=/m/law.gguf",))
    one = planned(Path("/m/Tiny.gguf"), header_of(tmp_path, template), config)
    assert ("tools" in one.abilities) is tools
    assert set(one.abilities) - {"tools"} == set(FILE_ABILITIES["llama"])
    assert (one.model, one.slots, one.context_tokens, list(one.adapters)) == ("Tiny", 3, 256, ["law"])


def test_the_ready_made_engine_plans_what_it_can_and_no_more(tmp_path: Path) -> None:
    config = NodeConfig(data_dir=tmp_path, engine="xllamacpp", adapters=("law=/m/law.gguf",))
    one = planned(Path("/m/Tiny.gguf"), header_of(tmp_path, "x"), config)
    assert not set(one.abilities) & {"continue_form", "kv", "tools"}
    assert {"chat", "generate", "json_schema"} <= set(one.abilities)
    assert not one.adapters


@pytest.mark.parametrize("engine", ["llama", "xllamacpp"])
def test_a_model_made_for_vectors_is_planned_for_nothing_else(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("llama", path, tiny_embedders.LAST, context=2048, template="{% if tools %}{% endif %}")
    config = NodeConfig(data_dir=tmp_path, engine=engine, adapters=("law=/m/law.gguf",))
    one = planned(path, gguf.read_header(path), config)
    assert (list(one.abilities), list(one.adapters), one.context_tokens) == (["embed"], [], 512)


def test_a_model_that_ranks_is_not_planned(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write("bert", path, tiny_embedders.RANK)
    with pytest.raises(KithError, match="ranks texts"):
        planned(path, gguf.read_header(path), NodeConfig(data_dir=tmp_path, engine="llama"))


async def check_promise(path: Path, engine: str) -> None:
    """What is planned of a file is what loading it gives."""
    promised = planned(
        path, gguf.read_header(path), NodeConfig(data_dir=Path("unused"), engine=engine, ctx=256, slots=2)
    )
    async with running(path, engine=engine, ctx=256, slots=2) as watched:
        loaded = watched.engine.loaded
    assert loaded is not None
    assert set(promised.abilities) == set(loaded.abilities) - {"kv"}, "which no header tells"
    for name in ("model", "slots", "context_tokens", "quantization", "vocabulary_size", "architecture", "licence"):
        assert getattr(promised, name) == getattr(loaded, name), name


def test_engines_of_a_node_share_the_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not those of the machine: a container often gets fewer."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 6, 7, 8, 9, 10}, raising=False)
    config = NodeConfig(data_dir=tmp_path, more_models=("b", "c"))
    assert engine_config(config).threads == 2
    assert engine_config(NodeConfig(data_dir=tmp_path, more_models=("b",), threads=5)).threads == 5
    assert engine_config(NodeConfig(data_dir=tmp_path)).threads == 0


@pytest.mark.model
async def test_what_is_planned_of_a_model_is_what_loading_it_gives(model_path: Path) -> None:
    await check_promise(model_path, "llama")


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not installed("xllamacpp"), reason="xllamacpp is not installed")
async def test_what_is_planned_for_the_ready_made_engine_is_what_loading_gives(model_path: Path) -> None:
    await check_promise(model_path, "xllamacpp")


@pytest.mark.parametrize("kind", ["nomic-bert", "llama"])
@pytest.mark.parametrize("engine", [name for name in FILE_ENGINES if installed(name)])
async def test_what_is_planned_of_a_model_made_for_vectors_is_what_loading_it_gives(
    tmp_path: Path, engine: str, kind: str
) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_embedders.write(kind, path, tiny_embedders.LAST, context=2048)
    await check_promise(path, engine)
