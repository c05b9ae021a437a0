"""Chat messages to the prompt that a model was trained on, by the Jinja template in its file.

The template comes from whoever made the model file, so it is code of a stranger: it runs in Jinja's immutable sandbox
(CVE-2024-34359 and its like), inside the engine process, with a bound on the size of what it renders and on the time
it takes, held by a line trace of the rendering thread. Not guaranteed: a bound on one single slow call of C code
inside a template; the sandbox refuses the known ones, and the process can be killed.

A model without a template is given a plain dialogue, see `PLAIN_TEMPLATE`: base models continue it sensibly.

Source of the conventions (trim_blocks, raise_exception, strftime_now, loop controls, generation blocks, the options of
tojson): transformers, `apply_chat_template`.
"""

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mesh.wire import engine_pb2
from node.errors import ExitCode, KithError

RENDERED_CHARACTERS_MAX = 4_000_000
RENDER_SECONDS_MAX = 2.0
TEMPLATE_CHARACTERS_MAX = 1_000_000

#: Used where the model file has no template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

_SEQUENCE_MAX = 1_000_000
_EXPONENT_MAX = 64
_REMEDY = "Use another GGUF file of this model, or send a plain prompt instead of messages."

Trace = Callable[[FrameType, str, Any], Any]


class _TooSlow(Exception):
    pass


class _TemplateError(Exception):
    """Raised by a template itself, for example for roles in the wrong order."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(right) > _EXPONENT_MAX or abs(left) > _SEQUENCE_MAX):
            raise SecurityError("a power is too large")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if hasattr(one, "__len__") and isinstance(other, int) and len(one) * other > _SEQUENCE_MAX:
                    raise SecurityError("a repeated sequence is too long")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting by % is not allowed")
        return super().call_binop(context, operator, left, right)


class _ModelsOwn(Extension):
    """`{% generation %}…{% endgeneration %}`: marks what the model says, for those who train it. What is between is
    shown as it is, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """One model's template, compiled once. Not safe to share between threads while rendering."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        """Raises `KithError` (`bad-model`) for a template that does not compile."""
        self.given = bool(source)
        self._bos = bos
        self._eos = eos
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _ModelsOwn], autoescape=False
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson
        if len(source) > TEMPLATE_CHARACTERS_MAX:
            raise KithError("bad-model", f"the model's chat template has {len(source):,} characters", _REMEDY)
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(source or PLAIN_TEMPLATE))
            self._template = environment.from_string(source or PLAIN_TEMPLATE)
        except jinja2.TemplateSyntaxError as error:
            message = f"the model's chat template is broken in line {error.lineno}: {error.message}"
            raise KithError("bad-model", message, _REMEDY) from error
        self.knows_tools = "tools" in names

    def render(self, messages: Sequence[engine_pb2.ChatMessage], tools_json: str = "") -> str:
        """The prompt up to where the assistant's answer begins. Raises `KithError` (`agent-refused`, `bad-request`,
        `bad-model`).

        Args:
            tools_json: OpenAI's `tools`; empty: none.
        """
        tools = _list_of(tools_json, "tools") if tools_json else []
        if tools and not self.knows_tools:
            message = "the model's chat template knows no tools"
            raise KithError("agent-refused", message, "Use a model that does.", ExitCode.BAD_INPUT)
        values = {
            "messages": [_values_of(message) for message in messages],
            "tools": tools or None,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "add_generation_prompt": True,
        }
        previous = sys.gettrace()
        sys.settrace(_deadline_trace(time.monotonic() + RENDER_SECONDS_MAX))
        try:
            return self._joined(values)
        except _TemplateError as error:
            message = f"the model's chat template refuses the messages: {error}"
            raise KithError("agent-refused", message, "", ExitCode.BAD_INPUT) from error
        except _TooSlow as error:
            message = f"the model's chat template did not finish within {RENDER_SECONDS_MAX:g} s"
            raise KithError("bad-model", message, _REMEDY) from error
        except KithError:
            raise
        except Exception as error:  # a stranger's code may raise anything; its text could quote the prompt
            message = f"the model's chat template fails ({type(error).__name__})"
            raise KithError("bad-model", message, _REMEDY) from error
        finally:
            sys.settrace(previous)

    def _joined(self, values: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(values):
            size += len(part)
            if size > RENDERED_CHARACTERS_MAX:
                message = f"the messages render to more than {RENDERED_CHARACTERS_MAX:,} characters"
                raise KithError("prompt-too-long", message, "Send less text.")
            parts.append(part)
        return "".join(parts)


def _values_of(message: engine_pb2.ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: the arguments of tools as objects, not as JSON text in JSON."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        values["name"] = message.name
    if message.tool_call_id:
        values["tool_call_id"] = message.tool_call_id
    if message.tool_calls_json:
        values["tool_calls"] = calls = _list_of(message.tool_calls_json, "tool_calls")
        for call in calls:
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                with contextlib.suppress(ValueError, RecursionError):
                    function["arguments"] = json.loads(function["arguments"])
    return values


def _list_of(text: str, what: str) -> list[dict[str, Any]]:
    """A JSON array of objects. Raises `KithError` (`bad-request`)."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise KithError("bad-request", f"{what} is not a JSON array of objects", "Send one.", ExitCode.BAD_INPUT)
    return found


def _deadline_trace(deadline: float) -> Trace:
    """A trace function that raises in the first line that runs after `deadline` (monotonic seconds)."""

    def trace(_frame: FrameType, _event: str, _argument: Any) -> Trace:
        if time.monotonic() > deadline:
            raise _TooSlow
        return trace

    return trace


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateError(str(message)[:200].rstrip("."))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(str(pattern)[:100])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
