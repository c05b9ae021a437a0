"""Fields of a request meet what the live agents can."""

import pytest

from mesh.wire import engine_pb2
from node.errors import KithError
from node.http.answering import Ask
from node.http.asking import answered
from node.http.fields import Refused
from node.http.tools import toolbox_of
from tests.node.http.scripted import Scripted, agent

TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]


def asked(mesh: Scripted, ask: Ask) -> engine_pb2.GenerateRequest:
    answered(mesh.router, mesh.replica(), ask, ("key", "me"))
    return ask.requests[0]


def talk(*contents: str, **fields: str) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(
        messages=[engine_pb2.ChatMessage(role="user", content=content, **fields) for content in contents]
    )


def test_the_owner_is_the_key_whatever_the_client_says() -> None:
    assert asked(Scripted(), Ask([talk("x")], "kith")).owner == "key:me"


def test_words_for_a_template_that_knows_no_tools_go_into_the_system_message() -> None:
    mesh = Scripted([agent("a", abilities=("chat", "grammar"))])
    request = engine_pb2.GenerateRequest(messages=[engine_pb2.ChatMessage(role="system", content="Be brief.")])
    box = toolbox_of({"tools": TOOLS, "tool_choice": "required"})
    said = asked(mesh, Ask([request], "kith", box, {"json_schema": "tool_choice"})).messages[0].content
    assert said.startswith("Be brief.\n\nYou call a function")


def test_an_agent_that_has_all_is_preferred_to_words() -> None:
    mesh = Scripted([agent("a", abilities=("chat", "tools")), agent("b", abilities=("chat", "grammar"))])
    box = toolbox_of({"tools": TOOLS, "tool_choice": "required"})
    request = asked(mesh, Ask([talk("x")], "kith", box, {"json_schema": "tool_choice"}))
    assert not request.tools_json, "who knows tools has no grammar"
    assert request.messages[0].role == "system"


def test_a_dialogue_that_holds_calls_needs_a_template_that_knows_them() -> None:
    mesh = Scripted([agent("a", abilities=("chat",))])
    request = talk("x")
    request.messages.add(role="tool", content="rain", tool_call_id="c")
    with pytest.raises(Refused) as caught:
        asked(mesh, Ask([request], "kith"))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("code", ["no-agent", "prompt-too-long"])
@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_what_is_too_long_for_all_names_its_field(code: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Scripted()
    request = talk("x") if field == "messages" else engine_pb2.GenerateRequest(prompt="x")

    def nobody(*_: object) -> None:
        raise KithError(code, "why", "what to do")

    monkeypatch.setattr(mesh, "choose", nobody)
    with pytest.raises(KithError) as caught:
        asked(mesh, Ask([request], "kith"))
    assert (caught.value.code, caught.value.message, caught.value.remedy) == (code, "why", "what to do")
    assert getattr(caught.value, "param", "") == (field if code == "prompt-too-long" else "")
