"""Templates as model files bring them, and as an attacker would write them."""

import sys
import time

import pytest

from mesh.wire import engine_pb2
from node.engine import template
from node.engine.template import ChatTemplate
from node.errors import KithError

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def messages(*pairs: tuple[str, str]) -> list[engine_pb2.ChatMessage]:
    return [engine_pb2.ChatMessage(role=role, content=content) for role, content in pairs]


HELLO = messages(("user", "你好"))


def test_template_renders_up_to_the_answer() -> None:
    prompt = ChatTemplate(CHATML).render(messages(("system", "Be brief."), ("user", "你好")))
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_model_without_template_gets_a_plain_dialogue() -> None:
    plain = ChatTemplate("")
    assert not plain.given
    prompt = plain.render(messages(("system", "Be brief."), ("user", "Hi")))
    assert prompt == "System: Be brief.\n\nUser: Hi\n\nAssistant:"


def test_special_tokens_and_helpers_are_there() -> None:
    source = "{{ bos_token }}{{ messages | tojson }}{{ strftime_now('%Y') | length }}{{ eos_token }}"
    prompt = ChatTemplate(source, "<s>", "</s>").render(messages(("user", "<語>")))
    assert prompt == '<s>[{"role": "user", "content": "<語>"}]4</s>'


def test_broken_template_names_its_line() -> None:
    with pytest.raises(KithError, match="line 2") as caught:
        ChatTemplate("fine\n{% for %}")
    assert caught.value.code == "bad-model"


def test_refusal_of_a_template_is_passed_on() -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('Roles must alternate.') }}{% endif %}ok"
    assert ChatTemplate(source).render(HELLO) == "ok"
    with pytest.raises(KithError, match="Roles must alternate") as caught:
        ChatTemplate(source).render(messages(("assistant", "Hi")))
    assert caught.value.code == "agent-refused", "another model's template may take them"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[7].content.missing }}",
        "{% include 'other' %}",
    ],
)
def test_hostile_template_ends_as_a_clear_error(source: str) -> None:
    with pytest.raises(KithError, match="chat template") as caught:
        ChatTemplate(source).render(HELLO)
    assert caught.value.code == "bad-model"
    assert "你好" not in caught.value.message


def test_endless_template_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_SECONDS_MAX", 0.1)
    loop = "{% for a in range(99999) %}"
    source = loop * 4 + "{% set x = a %}" + "{% endfor %}" * 4
    begun = time.monotonic()
    with pytest.raises(KithError, match="did not finish"):
        ChatTemplate(source).render(HELLO)
    assert time.monotonic() - begun < 5
    assert sys.gettrace() is None or "template" not in repr(sys.gettrace())


def test_endless_output_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDERED_CHARACTERS_MAX", 1000)
    source = "{% for a in range(99999) %}0123456789{% endfor %}"
    with pytest.raises(KithError, match="more than 1,000 characters"):
        ChatTemplate(source).render(HELLO)


#: The parts of Qwen 2.5's template that tools need.
TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>|{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}{% if message.tool_call_id %}<{{ message.tool_call_id }}>{% endif %}|{% endfor %}"
)


def test_tools_and_their_calls_reach_the_template() -> None:
    knowing = ChatTemplate(TOOLS)
    assert knowing.knows_tools
    dialogue = [
        *messages(("user", "Rain?")),
        engine_pb2.ChatMessage(
            role="assistant",
            tool_calls_json='[{"id": "c1", "function": {"name": "rain", "arguments": "{\\"a\\": 1}"}}]',
        ),
        engine_pb2.ChatMessage(role="tool", content="yes", tool_call_id="c1", name="rain"),
    ]
    prompt = knowing.render(dialogue, '[{"type": "function", "function": {"name": "rain"}}]')
    assert prompt == (
        '<tools>{"type": "function", "function": {"name": "rain"}}</tools>|'
        'user: Rain?|assistant: <call>rain {"a": 1}</call>|tool: yes<c1>|'
    )
    assert knowing.render(messages(("user", "Hi"))) == "user: Hi|"


def test_tools_are_refused_where_they_would_be_lost() -> None:
    assert not ChatTemplate(CHATML).knows_tools
    with pytest.raises(KithError, match="knows no tools"):
        ChatTemplate(CHATML).render(HELLO, '[{"type": "function"}]')
    assert ChatTemplate(CHATML).render(HELLO, "[]")


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "[" * 100_000, "null"])
def test_tools_that_are_no_list_of_objects_are_refused(text: str) -> None:
    with pytest.raises(KithError, match="JSON array of objects") as caught:
        ChatTemplate(TOOLS).render(HELLO, text)
    assert caught.value.code == "bad-request"
    call = engine_pb2.ChatMessage(role="assistant", tool_calls_json=text)
    with pytest.raises(KithError, match="tool_calls is not"):
        ChatTemplate(TOOLS).render([call])
