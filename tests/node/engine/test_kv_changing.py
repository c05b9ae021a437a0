"""A cache that changes its kind under work: nobody is cut off, nothing that was held gets lost, logits stay right."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from node.engine import kv_choice, llama
from node.engine.adapters import Adapters
from node.engine.kv_choice import SEEN_MIN, SPLIT, UNIFIED
from node.engine.llama_loop import LlamaLoop
from node.engine.llama_work import Work
from node.errors import KithError
from tests.node.engine import tiny_models
from tests.node.engine.gguf_files import lora
from tests.node.engine.test_llama_loop import PREFIX, Alone, Engine, Probe, alone, kv_token_bytes, prompt, same
from tests.node.engine.test_llama_memory import ROUNDING, Fresh, Reader

__all__ = ["alone"]  # a fixture

ROOM = 64 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama.Model]:
    path: Path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_models.write("llama", path)
    llama.start(warn=lambda _: None)
    model = llama.Model(path, 0)
    yield model
    model.close()


def different(number: int) -> list[int]:
    return [(7919 * i + 131 * number) % 40_000 + 100 for i in range(1, len(PREFIX) + 8)]


def run(loop: LlamaLoop, works: list[Probe]) -> list[int]:
    """How many slots were busy before each change that was made."""
    for work in works:
        loop.add(work)
    assert loop.changing is not None
    busy = []
    while not all(work.done for work in works):
        before, slots = loop.changing.changes, loop.stats().slots_busy
        loop.step()
        busy += [slots] * (loop.changing.changes - before)
    return busy


@pytest.mark.model
def test_it_changes_under_work_of_either_kind_and_logits_stay_right(model: llama.Model, alone: Alone) -> None:
    engine = Engine(model, slots=8, spill_bytes=ROOM, kv_auto=True)
    changing = engine.loop.changing
    assert changing is not None
    assert changing.told == (SPLIT, f"auto: fewer than {SEEN_MIN} requests came since it is so")
    for kind, prompts in (
        (UNIFIED, [prompt(1 + number % 9) for number in range(SEEN_MIN + 8)]),
        (SPLIT, [different(number) for number in range(SEEN_MIN + 4)]),
        (UNIFIED, [prompt(1 + number % 9) for number in range(3 * SEEN_MIN)]),
    ):
        probes = [Probe(tokens, 5) for tokens in prompts]
        busy = run(engine.loop, probes)
        assert len(busy) == 1
        assert busy[0] > 0, "it waits for nobody"
        assert changing.told[0] == kind == ("unified" if engine.context.unified else "split")
        assert all(len(probe.target) == probe.prompt_tokens + 4 for probe in probes)
        assert all(same(probe, alone) for probe in probes)
    assert changing.told[1].startswith("auto: ")
    engine.context.close()


@pytest.mark.model
def test_what_was_held_and_what_was_spilled_is_there_after_a_change(model: llama.Model, alone: Alone) -> None:
    engine = Engine(model, slots=8, spill_bytes=ROOM, kv_auto=True)
    held = [Probe(different(number)) for number in range(10)]  # two of them end up in ordinary memory
    engine.run(*held)
    run(engine.loop, [Probe(prompt(number % 9), 3) for number in range(4 * SEEN_MIN)])
    assert engine.context.unified
    read = engine.read
    again = [Probe([*probe.target, 5, 6]) for probe in held]
    engine.run(*again)
    assert engine.read - read == 10 * 2
    assert all(same(probe, alone) for probe in again)
    engine.context.close()


@pytest.mark.parametrize("spill_bytes", [0, 20_000, 1 << 20], ids=["nothing", "some", "all"])
def test_random_traffic_under_many_changes_gets_the_logits_of_a_fresh_reading(
    tiny: llama.Model, spill_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is always room for what running requests hold, at times, or only while they hold nothing."""
    monkeypatch.setattr(kv_choice, "SEEN_MIN", 3)
    monkeypatch.setattr(kv_choice, "UNIFIED_BELOW", 0.75)
    monkeypatch.setattr(kv_choice, "SPLIT_ABOVE", 0.85)
    draw = np.random.default_rng(13)
    context = llama.Context(tiny, 128, 3, 1, 32, flash_attention=False)
    loop = LlamaLoop(context, 3, lambda: None, Adapters(tiny, ()), spill_bytes, kv_token_bytes(context))
    assert loop.changing is not None
    fresh = Fresh(tiny)
    base = draw.integers(0, 64, 60).tolist()
    readers: list[tuple[Reader, int]] = []  # and how often it takes logits
    busy = []

    def step() -> None:
        assert loop.changing is not None
        before, slots = loop.changing.changes, loop.stats().slots_busy
        loop.step()
        busy.extend([slots] * (loop.changing.changes - before))
        assert all(seat.slot is None or len(seat.slot.held) <= seat.work.outputs_from for seat in loop._seats)

    for number in range(160):
        tail = draw.integers(0, 64, int(draw.integers(1, 12))).tolist()
        alike = number // 40 % 2 == 0
        endings = tuple(draw.integers(0, 64, 3).tolist() for _ in range(number % 4 // 2))
        write = int(draw.integers(1, 9))
        reader = Reader((base if alike else draw.integers(0, 64, 60).tolist()) + tail, write, endings)
        readers.append((reader, write + len(endings)))
        loop.add(reader)
        if number % 7 == 6:
            reader.request.cancelled = True
        for _ in range(int(draw.integers(0, 5))):
            step()
    while not all(reader.done for reader, _ in readers):
        step()
    assert busy
    assert spill_bytes < 1 << 20 or sum(slots > 0 for slots in busy) >= 3
    for reader, wanted in readers:
        assert len(reader.seen) <= wanted
        assert len(reader.seen) == wanted or reader.request.cancelled
        for tokens, logits in reader.seen:
            assert float(np.abs(logits - fresh.after(tokens)).max()) < ROUNDING
    context.close()
    fresh.close()


def changing_loop(model: llama.Model, spill_bytes: int) -> tuple[llama.Context, LlamaLoop]:
    context = llama.Context(model, 128, 6, 1, 32, flash_attention=False)
    return context, LlamaLoop(context, 6, lambda: None, Adapters(model, ()), spill_bytes, kv_token_bytes(context))


def test_what_does_not_fit_is_waited_for(tiny: llama.Model) -> None:
    context, loop = changing_loop(tiny, spill_bytes=1000)
    assert loop.changing is not None
    base = [(7 * i) % 64 for i in range(60)]
    long = Reader(base, 60)
    works: list[Work] = [Reader([*base, number % 60, 3]) for number in range(SEEN_MIN + 8)]
    for work in (long, *works):
        loop.add(work)
    while not long.done:
        assert loop.changing.told[0] == SPLIT
        loop.step()
    assert all(work.done for work in works)
    assert len(long.seen) == 60
    loop.step()
    assert loop.changing.told[0] == UNIFIED
    context.close()


def test_a_request_whose_copy_can_not_be_put_back_is_read_again_and_holds_no_writer_back(
    tiny: llama.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, loop = changing_loop(tiny, spill_bytes=1 << 20)
    assert loop.changing is not None
    fresh = Fresh(tiny)
    base = [(7 * i) % 64 for i in range(60)]
    unlucky, other = Reader(base, 60), Reader([*base, 5], 60)
    crowd = [Reader([*base, number % 60, 3]) for number in range(2 * SEEN_MIN)]
    for work in (unlucky, other, *crowd):
        loop.add(work)
    loop.step()
    slot = loop._seats[0].slot
    assert slot is not None
    restore, emptied = context.restore, 0

    def fail(sequence: int, state: bytearray) -> bool:
        nonlocal emptied
        if sequence != slot.id:
            return restore(sequence, state)
        context.cut(sequence, 0)
        emptied += 1
        return False

    while not emptied:
        if loop.changing.changes == 0 and len(unlucky.seen) and len(other.seen):
            monkeypatch.setattr(context, "restore", fail)
        loop.step()
    monkeypatch.setattr(context, "restore", restore)
    assert loop.changing.changes == 1
    while not other.done:
        said = len(other.seen)
        loop.step()
        assert len(other.seen) == said + 1
    while not unlucky.done:
        loop.step()
    for work in (unlucky, other):
        assert len(work.seen) == 60
        for tokens, logits in work.seen:
            assert float(np.abs(logits - fresh.after(tokens)).max()) < ROUNDING
    context.close()
    fresh.close()


def test_an_idle_engine_changes_whatever_the_room(tiny: llama.Model) -> None:
    context, loop = changing_loop(tiny, spill_bytes=0)
    assert loop.changing is not None
    base = [(7 * i) % 64 for i in range(60)]
    works = [Reader([*base, number % 60, 3]) for number in range(2 * SEEN_MIN)]
    for work in works:
        loop.add(work)
    while not all(work.done for work in works):
        loop.step()
    loop.step()
    assert context.unified
    context.close()


def test_where_there_is_no_memory_for_the_other_kind_all_goes_on_with_this_one(
    tiny: llama.Model, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    context, loop = changing_loop(tiny, spill_bytes=1 << 20)
    assert loop.changing is not None
    opened, refused = context._open, 0

    def refuse(unified: bool) -> None:
        nonlocal refused
        if unified:
            refused += 1
            raise KithError("engine-failed", "there is no memory")
        opened(unified)

    monkeypatch.setattr(context, "_open", refuse)
    fresh = Fresh(tiny)
    base = [(7 * i) % 64 for i in range(60)]
    works = [Reader([*base, number % 60, 3], 4) for number in range(6 * SEEN_MIN)]
    for work in works:
        loop.add(work)
    while not all(work.done for work in works):
        loop.step()
    assert not context.unified
    assert loop.changing.told == (SPLIT, "auto: there was no memory for a unified KV cache")
    assert refused == 1, "it is not tried again"
    assert loop.changing.changes == 0
    told = capfd.readouterr().err
    assert "stays split" in told
    assert "now" not in told
    assert loop.stats().cached_tokens >= (6 * SEEN_MIN - 6) * len(base)
    for work in works:
        for tokens, logits in work.seen:
            assert float(np.abs(logits - fresh.after(tokens)).max()) < ROUNDING
    context.close()
    fresh.close()


@pytest.mark.model
def test_an_adapter_still_works_after_a_change(model: llama.Model, tmp_path: Path) -> None:
    from mesh.wire import engine_pb2

    path = tmp_path / "one.gguf"
    path.write_bytes(lora(0, strength=8.0).build())
    adapters = Adapters(model, [engine_pb2.Adapter(name="one", path=str(path))])
    context = llama.Context(model, 256, 8, 1, 128, flash_attention=False)
    loop = LlamaLoop(context, 8, lambda: None, adapters, ROOM, kv_token_bytes(context))

    def said(adapter: str, tokens: list[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        probe = Probe(tokens)
        probe.adapter = adapter
        run(loop, [probe])
        assert probe.after_prompt is not None
        return probe.after_prompt

    before = said("one", prompt(1))
    crowd = [Probe(prompt(number % 9), 3) for number in range(2 * SEEN_MIN)]
    for probe in crowd:
        probe.adapter = "one"
    run(loop, crowd)
    assert context.unified
    after = said("one", prompt(1))
    assert float(np.abs(after - before).mean()) < 0.5 * float(np.abs(said("", prompt(1)) - before).mean())
    context.close()


@pytest.mark.model
def test_two_caches_are_never_there_at_a_time(model: llama.Model) -> None:
    process = psutil.Process()
    without = process.memory_info().rss
    slots = 8
    context = llama.Context(model, 2048, slots, 1, 128, flash_attention=False)
    size = process.memory_info().rss - without
    assert size > slots * 2048 * 15_000, "the cache's memory counts from the beginning"
    loop = LlamaLoop(context, slots, lambda: None, Adapters(model, ()), ROOM, kv_token_bytes(context))
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory that was used is counted anew
    run(loop, [Probe(prompt(number % 9), 3) for number in range(3 * SEEN_MIN)])
    assert context.unified
    rows = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    highest = next(int(row.split()[1]) for row in rows if row.startswith("VmHWM:")) * 1024
    assert highest - without < 1.3 * size + 2 * ROOM
    context.close()
