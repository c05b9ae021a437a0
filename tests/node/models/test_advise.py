"""The choice, on made-up machines: what fits, what is quick enough, and why."""

import dataclasses

import pytest

from node.models.advise import KINDS, Advice, advise, rates
from node.models.catalogue import TASKS, Catalogue, HostedModel, LocalModel, load
from node.models.this_machine import Machine, Measured

GIB = 1 << 30
LAPTOP = Machine(8, 16 * GIB, 12 * GIB, 40e9, 28.0)


def model(name: str, gigabytes: float, tier: int, active: float = 1.0) -> LocalModel:
    parameters = int(gigabytes * 2e9)
    return LocalModel(
        name, f"hf://a/b/{name}.gguf", "Q4_0", int(gigabytes * 1e9), parameters, 10, 5, 5, 8192, "mit", "many",
        {"chat": tier, "embed": tier}, "https://example.org", "https://example.org", "2026-01-01",
        int(parameters * active), sha256=name * 3,
    )  # fmt: skip


HOSTED = HostedModel("h", "V", "https://v", 1.0, 2.0, 10, "many", ("chat",), "2026-01-01", "https://example.org")
LIST = Catalogue("2026-01-01", (model("small", 0.5, 1), model("middle", 3, 3), model("large", 6, 4)), (HOSTED,))


def named(advice: Advice) -> str:
    return advice.choice.model.name if advice.choice else ""


def test_best_tier_that_fits_and_is_quick_enough_wins() -> None:
    # 0.85 × 40 GB/s over 6 GB: 5.7 tokens/s, below what chat wants; over 3 GB: 11.3.
    advice = advise(LIST, LAPTOP, "chat")
    assert named(advice) == "middle"
    assert "large would be better, and too slow here" in advice.why
    quicker = dataclasses.replace(LAPTOP, read_bytes_per_s=120e9)
    assert named(advise(LIST, quicker, "embed")) == "large"  # nothing is written
    assert named(advise(LIST, dataclasses.replace(LAPTOP, read_bytes_per_s=80e9), "chat")) == "large"


def test_memory_bounds_the_choice() -> None:
    advice = advise(LIST, LAPTOP, "chat", 2 * GIB)
    assert named(advice) == "small"
    assert "middle would be better with 3.1 GB" in advice.why
    nothing = advise(LIST, LAPTOP, "chat", 100 << 20)
    assert nothing.choice is None
    assert nothing.why == "none fits: the smallest needs 0.6 GB of memory"


def test_quicker_one_of_two_equals_wins() -> None:
    equal = Catalogue("", (model("dense", 5, 3), model("sparse", 5, 3, active=0.2)), ())
    advice = advise(equal, dataclasses.replace(LAPTOP, read_bytes_per_s=80e9), "chat")
    assert named(advice) == "sparse"
    assert "quicker than dense" in advice.why


def test_where_all_are_too_slow_the_quickest_is_named() -> None:
    advice = advise(LIST, dataclasses.replace(LAPTOP, read_bytes_per_s=1e9), "chat")
    assert named(advice) == "small"
    assert "the quickest one" in advice.why


def test_a_task_that_nobody_waits_for_is_too_slow_though_its_words_come_fast_enough() -> None:
    one = Catalogue("", (model("small", 0.5, 1), model("slow", 3, 3)), ())
    # 3 GB at 40 GB/s: 34 tokens/s read, so 500 of a text take 15 s; 0.5 GB: 2.5 s.
    assert named(advise(one, LAPTOP, "embed")) == "small"
    # It writes 11 tokens/s, but was measured to read 3: a turn of a dialogue takes three minutes.
    measured = Measured("slow", 3_000_000_000, 6_000_000_000, 3.0, 11.0)
    advice = advise(one, dataclasses.replace(LAPTOP, measured=measured), "chat")
    assert named(advice) == "small"
    assert "slow would be better, and too slow here" in advice.why
    never = advise(one, dataclasses.replace(LAPTOP, read_bytes_per_s=1e9), "embed")
    assert named(never) == "small"
    assert never.why == "no model that fits does such a task in 10 s here, so the quickest one"


def test_rates_scale_with_what_a_node_measured() -> None:
    measured = Measured("small", 500_000_000, 1_000_000_000, 400.0, 60.0)
    machine = dataclasses.replace(LAPTOP, measured=measured, read_bytes_per_s=0.0)
    assert rates(LIST.local[0], machine) == pytest.approx((400.0, 60.0))
    assert rates(LIST.local[2], machine) == pytest.approx((400.0 / 12, 5.0))
    assert "measured with small" in advise(LIST, machine, "chat").rates_from


def test_a_measured_mixture_of_experts_is_as_fast_as_it_was_measured_and_the_others_by_what_it_reads() -> None:
    sparse = model("sparse", 10, 4, active=0.2)
    mixed = Catalogue("", (*LIST.local, sparse), ())
    measured = Measured("sparse", sparse.bytes, sparse.parameters, 100.0, 20.0, active_share=0.25)
    machine = dataclasses.replace(LAPTOP, measured=measured)
    [one] = [one for one in advise(mixed, machine, "chat").candidates if one.measured]
    assert (one.model, one.prefill_tokens_per_s, one.decode_tokens_per_s) == (sparse, 100.0, 20.0)
    # A token of it reads 2.5 GB and takes 5 billion parameters; of the dense one 0.5 GB and a billion.
    assert rates(LIST.local[0], machine) == pytest.approx((500.0, 100.0))


def test_what_is_here_is_known_by_its_source_or_its_hash_and_what_was_measured_by_its_size() -> None:
    measured = Measured("any name", 3_000_000_000, 6_000_000_000, 100.0, 9.0)
    machine = dataclasses.replace(LAPTOP, measured=measured)
    advice = advise(LIST, machine, "chat", here=["hf://a/b/small.gguf", "middle" * 3])
    assert {one.model.name for one in advice.candidates if one.here} == {"small", "middle"}
    [middle] = [one for one in advice.candidates if one.measured]
    assert middle.model.name == "middle"
    assert (middle.prefill_tokens_per_s, middle.decode_tokens_per_s) == pytest.approx((100.0, 9.0))


def test_seconds_energy_and_money() -> None:
    advice = advise(LIST, LAPTOP, "chat")
    kind, best = KINDS["chat"], advice.candidates[0]
    expected = kind.prompt_tokens / best.prefill_tokens_per_s + kind.output_tokens / best.decode_tokens_per_s
    assert best.seconds == pytest.approx(expected)
    assert best.joules_max == pytest.approx(28.0 * expected)
    [hosted] = advice.hosted
    assert hosted.dollars_per_1000 == pytest.approx((500 * 1.0 + 300 * 2.0) / 1000)
    assert advise(LIST, dataclasses.replace(LAPTOP, watts_max=0.0), "chat").candidates[0].joules_max == 0


def test_real_list_has_a_choice_for_a_common_laptop() -> None:
    for task in TASKS:
        advice = advise(load(), LAPTOP, task)
        assert advice.choice is not None, task
        assert advice.choice.fits
        assert advice.candidates[0] is advice.choice
    assert set(KINDS) == set(TASKS)
