"""Templates as model files bring them, and as an attacker would write them."""

import json
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


def test_marks_of_what_the_model_says_show_what_is_between_them() -> None:
    source = (
        "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
        "{% generation %}\n{%- set text = message.content | trim -%}{{ '<A>' + text + eos_token }}{% endgeneration %}"
        "{%- else -%}{{ '<U>' + message.content }}{%- endif -%}{%- endfor -%}{{ text is defined }}"
    )
    prompt = ChatTemplate(source, eos="</s>").render(messages(("user", "Hi"), ("assistant", " Ho "), ("user", "Hm")))
    assert prompt == "<U>Hi<A>Ho</s><U>HmFalse"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", '[{"type": "t", "name": "é"}]'),
        ("separators=(',', ':')", '[{"type":"t","name":"é"}]'),
        ("ensure_ascii=True", '[{"type": "t", "name": "\\u00e9"}]'),
        ("sort_keys=true", '[{"name": "é", "type": "t"}]'),
        ("indent=1", '[\n {\n  "type": "t",\n  "name": "é"\n }\n]'),
    ],
)
def test_tools_are_spelt_as_the_template_wants(options: str, expected: str) -> None:
    source = f"{{{{ tools | tojson({options}) }}}}"
    assert ChatTemplate(source).render(HELLO, '[{"type": "t", "name": "é"}]') == expected


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


#: As templates of that family are built: tools in the system message, results of tools side by side in one of the user.
IN_TURNS = r"""
{%- set head = messages[0].content if messages[0].role == 'system' else 'Help.' %}
{{- '<|im_start|>system\n' + head }}
{%- if tools %}
    {{- '\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>' + message.content + '</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '<tool_call>{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments | tojson }}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def test_results_of_tools_reach_a_template_that_puts_them_together() -> None:
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "rain", "arguments": f'{{"n": {n}}}'}} for n in (1, 2)
    ]
    dialogue = [
        *messages(("system", "Be brief."), ("user", "Rain?")),
        engine_pb2.ChatMessage(role="assistant", tool_calls_json=json.dumps(calls)),
        engine_pb2.ChatMessage(role="tool", content="yes", tool_call_id="c1"),
        engine_pb2.ChatMessage(role="tool", content="no", tool_call_id="c2"),
    ]
    knowing = ChatTemplate(IN_TURNS)
    assert knowing.knows_tools
    prompt = knowing.render(dialogue, '[{"type": "function"}]')
    assert prompt == (
        '<|im_start|>system\nBe brief.\n<tools>\n{"type": "function"}\n</tools><|im_end|>\n'
        "<|im_start|>user\nRain?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "rain", "arguments": {"n": 1}}</tool_call>'
        '<tool_call>{"name": "rain", "arguments": {"n": 2}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>yes</tool_response>\n<tool_response>no</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "<tools>" not in knowing.render(messages(("user", "Hi")))


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
