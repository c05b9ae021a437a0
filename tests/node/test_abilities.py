"""What a request needs, in the words of the profiles."""

import pytest

from mesh.wire import engine_pb2
from node.abilities import needed, offered

MESSAGE = engine_pb2.ChatMessage(role="user", content="x")


@pytest.mark.parametrize(
    ("request_", "abilities"),
    [
        (engine_pb2.GenerateRequest(prompt="x"), {"generate"}),
        (engine_pb2.GenerateRequest(messages=[MESSAGE]), {"chat"}),
        (engine_pb2.GenerateRequest(prompt="x", continue_from="y"), {"generate", "continue"}),
        (engine_pb2.GenerateRequest(prompt="x", continue_tokens=[1]), {"generate", "continue"}),
        (engine_pb2.GenerateRequest(messages=[MESSAGE], grammar="root ::= x"), {"chat", "grammar"}),
        (engine_pb2.GenerateRequest(messages=[MESSAGE], json_schema="{}"), {"chat", "json_schema"}),
        (engine_pb2.GenerateRequest(messages=[MESSAGE], logprobs=True, tools_json="[]"), {"chat", "logprobs", "tools"}),
    ],
)
def test_what_a_request_needs(request_: engine_pb2.GenerateRequest, abilities: set[str]) -> None:
    assert needed(request_) == abilities


def test_whoever_follows_a_grammar_follows_a_schema() -> None:
    assert offered(["chat", "grammar"]) == {"chat", "grammar", "json_schema"}
    assert offered(["json_schema"]) == {"json_schema"}
