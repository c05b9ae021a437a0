"""What requests need, and what agents offer."""

import pytest

from mesh.effects import AgentState
from mesh.wire import common_pb2, engine_pb2, facts_pb2
from node.abilities import needed, offered
from node.leader import load_of
from solver.costs import TaskNeed, cost_terms, why_not

HELLO = engine_pb2.ChatMessage(role="user", content="Hi")


@pytest.mark.parametrize(
    ("request_", "abilities"),
    [
        (engine_pb2.GenerateRequest(messages=[HELLO]), {"chat"}),
        (engine_pb2.GenerateRequest(prompt="Hi", max_tokens=3), {"generate"}),
        (engine_pb2.GenerateRequest(prompt="Hi", continue_from="x"), {"generate", "continue"}),
        (engine_pb2.GenerateRequest(messages=[HELLO], continue_tokens=[1]), {"chat", "continue"}),
        (
            engine_pb2.GenerateRequest(prompt="Hi", continue_tokens=[1], json_schema="{}"),
            {"generate", "continue", "continue_form", "json_schema"},
        ),
        (engine_pb2.GenerateRequest(messages=[HELLO, engine_pb2.ChatMessage(role="tool")]), {"chat", "tools"}),
        (engine_pb2.GenerateRequest(messages=[HELLO], logprobs=True), {"chat", "logprobs"}),
        (engine_pb2.GenerateRequest(messages=[HELLO], tools_json="[]"), {"chat", "tools"}),
        (engine_pb2.GenerateRequest(messages=[HELLO], json_schema="{}"), {"chat", "json_schema"}),
        (engine_pb2.GenerateRequest(messages=[HELLO], grammar="root ::= x"), {"chat", "grammar"}),
    ],
)
def test_each_wish_needs_its_ability(request_: engine_pb2.GenerateRequest, abilities: set[str]) -> None:
    assert needed(request_) == abilities


def test_grammar_brings_schemas_along() -> None:
    assert offered(["chat", "grammar"]) == {"chat", "grammar", "json_schema"}
    assert offered(["chat", "json_schema"]) == {"chat", "json_schema"}
    assert offered([]) == frozenset()


def test_request_goes_only_to_agents_that_can_do_all_of_it() -> None:
    def why(abilities: list[str]) -> str:
        profile = facts_pb2.AgentProfile(agent="default", abilities=abilities)
        ref = common_pb2.AgentRef(node_id="n", agent="default")
        load = load_of(AgentState(ref, profile, 1, 0, 0, False))
        request = engine_pb2.GenerateRequest(messages=[HELLO], json_schema="{}", logprobs=True)
        need = TaskNeed("t", 1, 1, "chat", needed(request))
        assert (cost_terms(load, need) is None) == bool(why_not(load, need))
        return why_not(load, need)

    assert why(["chat", "grammar", "logprobs"]) == ""
    assert why(["chat", "logprobs"]) == "it can not hold to a JSON schema"
    assert why(["chat"]) == "it can not hold to a JSON schema nor tell log-probabilities"
