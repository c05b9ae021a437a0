"""Sampling fields reach the engine's request, within bounds."""

from typing import Any

import pytest

from mesh.wire import engine_pb2
from node.http.fields import Refused
from node.http.sampling import TEMPERATURE, apply_sampling, tokens_max


def applied(**body: Any) -> engine_pb2.GenerateRequest:
    request = engine_pb2.GenerateRequest()
    apply_sampling(body, request)
    return request


def test_every_field_arrives() -> None:
    request = applied(
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.125,
        repeat_penalty=1.5,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        seed=9,
        stop=["a", "b"],
        logit_bias={"17": -100, "3": 0.5},
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 40, 0.125)
    assert (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.5, 0.25, -0.5)
    assert sampling.seed == 9
    assert dict(sampling.logit_bias) == {17: -100.0, 3: 0.5}
    assert list(request.stop) == ["a", "b"]
    assert applied().sampling.temperature == TEMPERATURE
    assert list(applied(stop="x").stop) == ["x"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": "x"}, "presence_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ],
)
def test_what_is_out_of_bounds_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        applied(**body)
    assert caught.value.param == param


def test_the_least_nucleus_is_not_taken_for_none() -> None:
    """0 means "off" to an engine; to OpenAI's clients it means the likeliest token."""
    assert 0 < applied(top_p=0).sampling.top_p < 1e-3
    assert applied().sampling.top_p == applied(top_p=1).sampling.top_p == 1


def test_seeds_differ_where_none_is_given() -> None:
    assert len({applied().sampling.seed for _ in range(20)}) > 1


def test_the_first_limit_that_is_there_counts() -> None:
    assert tokens_max({"max_tokens": 5, "max_completion_tokens": 7}, "max_completion_tokens", "max_tokens") == 7
    assert tokens_max({"max_tokens": 5}, "max_completion_tokens", "max_tokens") == 5
    assert tokens_max({}, "max_tokens") == 0
    with pytest.raises(Refused):
        tokens_max({"max_tokens": 0}, "max_tokens")
