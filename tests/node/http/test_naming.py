"""Names of models, and what must be there for a request."""

import pytest

from node.errors import ExitCode
from node.http.fields import Refused
from node.http.naming import check_abilities, live_agents, resolve
from tests.node.http.scripted import Scripted, agent

MESH = Scripted([agent("b", "small"), agent("a", "small", ("chat",)), agent("a", "org/large", ("chat", "tools"))])


def named(name: str) -> list[tuple[str, str]]:
    found = resolve(name, live_agents(MESH.replica()))
    return [(one.node_name, one.agent.model) for one in found.agents]


def test_what_a_name_means() -> None:
    everybody = [("b", "small"), ("a", "small"), ("a", "org/large")]
    assert named("kith") == named("kith/panel") == everybody
    assert resolve("kith/panel", live_agents(MESH.replica())).panel
    assert named("small") == [("b", "small"), ("a", "small")]
    assert named("org/large") == named("a/org/large") == [("a", "org/large")]
    assert named("a/small") == named("aaaa/small") == [("a", "small")]
    assert named("a/kith") == [("a", "small"), ("a", "org/large")]


@pytest.mark.parametrize("name", ["", "large", "a/large", "aaa/small", "b/org/large", "kith/", "x" * 10_000])
def test_a_name_that_nobody_serves(name: str) -> None:
    with pytest.raises(Refused) as caught:
        named(name)
    assert (caught.value.code, caught.value.param, caught.value.exit_code) == (
        "model-unknown",
        "model",
        ExitCode.NOT_FOUND,
    )


def test_what_nobody_can_is_refused_by_its_field() -> None:
    everybody = resolve("kith", live_agents(MESH.replica()))
    check_abilities(everybody, {"tools": "tools", "grammar": "response_format"})
    check_abilities(everybody, {"json_schema": "response_format"})  # comes with a grammar
    small = resolve("a/small", live_agents(MESH.replica()))
    with pytest.raises(Refused) as caught:
        check_abilities(small, {"tools": "tools"})
    assert caught.value.param == "tools"


def test_one_agent_has_to_have_all() -> None:
    apart = Scripted([agent("a", abilities=("chat", "tools")), agent("b", abilities=("chat", "logprobs"))])
    with pytest.raises(Refused, match="all of"):
        check_abilities(resolve("kith", live_agents(apart.replica())), {"tools": "tools", "logprobs": "logprobs"})
