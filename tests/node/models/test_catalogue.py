"""The list holds together: what can be checked without the network is."""

import datetime
import re
from pathlib import Path

import pytest

from node import gguf
from node.models.catalogue import TASKS, TIER_MAX, load
from node.models.default import DEFAULT_BYTES, DEFAULT_NAME, DEFAULT_SHA256
from node.models.source import HubSource, parse


def test_local_models_can_be_pulled_and_say_where_their_facts_come_from() -> None:
    models = load().local
    assert len({model.name for model in models}) == len(models)
    for model in models:
        if model.source:
            source = parse(model.source)
            assert isinstance(source, HubSource), model.name
            assert model.quantization.split(" ")[0].lower() in source.file.lower()
        assert set(model.tasks) <= set(TASKS), model.name
        assert all(1 <= tier <= TIER_MAX for tier in model.tasks.values())
        assert model.evidence.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.card.startswith("https://huggingface.co/")
        assert datetime.date.fromisoformat(model.checked) <= datetime.date.fromisoformat(load().read)
        if model.source:
            assert isinstance(source, HubSource)
            assert re.fullmatch(r"[0-9a-f]{40}", model.revision)
            assert model.page == f"https://huggingface.co/{source.repo}/blob/{model.revision}/{source.file}"
        assert model.bytes % 10_000, "to the byte, not as a page rounds it"
        assert 0 < model.active_share <= 1
        # From 4 to 9 bits a weight, by quantisation; small vocabularies weigh more.
        assert 3.5 < 8 * model.bytes / model.parameters < 9.5, model.name


def test_default_model_is_as_the_product_fetches_it() -> None:
    [default] = [model for model in load().local if not model.source]
    assert (default.name, default.bytes, default.sha256) == (DEFAULT_NAME, DEFAULT_BYTES, DEFAULT_SHA256)


@pytest.mark.model
def test_layers_and_heads_of_the_default_model_are_those_of_its_file(model_path: Path) -> None:
    [default] = [model for model in load().local if not model.source]
    header = gguf.read_header(model_path)
    assert header.parameters == default.parameters
    assert header.context_tokens == default.context
    assert header.kv_bytes_per_token == default.kv_bytes_per_token


def test_prices_have_a_day_and_a_page() -> None:
    for model in load().hosted:
        assert datetime.date.fromisoformat(model.price_date) <= datetime.date.fromisoformat(load().read)
        assert model.price_source.startswith("https://")
        assert model.price(1_000_000, 0) == model.input
        assert model.price(0, 1_000_000) == model.output
        assert set(model.tasks) <= set(TASKS)


def test_every_kind_of_task_has_a_model() -> None:
    for task in TASKS:
        assert any(task in model.tasks for model in load().local), task
