"""Tools that a model may call: OpenAI's `tools` and `tool_choice`, into what an engine can be asked.

Idea: left to the model ("auto"), the tools go into its chat template, which has to know tools; what it then writes is
searched for calls (tool_reading.py). Where a call is required, the answer is held to a JSON schema of the call, which
any agent with a grammar can; a template that knows no tools is then told of them in a system message.

Not guaranteed: that a model calls a tool sensibly. Arguments follow the tool's schema only where a call is required.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from node.http.fields import Refused, canonical, listing, mapping, text

TOOLS_MAX = 128
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
AUTO, NONE, REQUIRED = "auto", "none", "required"
#: Words of a JSON schema that bound the type of what follows it.
_SAYS_TYPE = {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema

    def as_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request. `choice`: "auto", "none", "required", or the name of one that has to be called."""

    tools: tuple[Tool, ...] = ()
    choice: str = NONE
    parallel: bool = True  # several calls in one answer

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)

    @property
    def active(self) -> bool:
        """Whether an answer may hold calls."""
        return bool(self.tools) and self.choice != NONE

    @property
    def forced(self) -> bool:
        return self.active and self.choice != AUTO

    def as_json(self) -> str:
        """For the chat template."""
        return json.dumps([tool.as_openai() for tool in self.tools], ensure_ascii=False)

    def call_schema(self) -> str:
        """JSON schema of the call that has to be made. Raises `Refused`."""
        allowed = [tool for tool in self.tools if self.choice in (REQUIRED, tool.name)]
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": _of_objects(tool.parameters)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in allowed
        ]
        # Definitions are found from the root: they are moved there.
        definitions: dict[str, Any] = {}
        for tool in allowed:
            for word in ("$defs", "definitions"):
                for name, definition in mapping(tool.parameters.get(word) or {}, "tools").items():
                    if definitions.setdefault(word, {}).setdefault(name, definition) != definition:
                        raise Refused(f"two tools define {name!r} differently", "tools")
        schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return json.dumps(schema | definitions, ensure_ascii=False)

    def in_words(self) -> str:
        """For a model whose template knows no tools."""
        lines = [
            f"- {tool.name}: {tool.description or 'no description'}; arguments: "
            f"{json.dumps(tool.parameters, ensure_ascii=False)}"
            for tool in self.tools
            if self.choice in (REQUIRED, tool.name)
        ]
        return (
            "You call a function. Functions:\n"
            + "\n".join(lines)
            + '\nAnswer with one JSON object and nothing else: {"name": the function, "arguments": {…}}.'
        )


def _of_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """With the type that arguments have, where a schema leaves it open: `{}` would allow a number."""
    return schema if schema.keys() & _SAYS_TYPE else {"type": "object"} | schema


def toolbox_of(body: dict[str, Any]) -> Toolbox:
    """From a body of chat completions or of responses. Raises `Refused`."""
    given = body.get("tools")
    choice = body.get("tool_choice")
    tools: tuple[Tool, ...] = ()
    if given:
        tools = tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(listing(given, "tools", TOOLS_MAX)))
        if len({tool.name for tool in tools}) < len(tools):
            raise Refused("two tools have the same name", "tools")
    parallel = body.get("parallel_tool_calls")
    chosen = _choice(choice, tools)
    return Toolbox(tools, chosen, parallel is not False)


def _tool(value: Any, at: str) -> Tool:
    given = mapping(value, at)
    if given.get("type") != "function":
        raise Refused(f"{at} is of another type than function: this mesh runs no tools of its own", at)
    function = mapping(given["function"], f"{at}.function") if "function" in given else given
    name = text(function.get("name"), f"{at}.name")
    if not NAME.fullmatch(name) or name in (AUTO, NONE, REQUIRED):
        raise Refused(f"{at}.name is no name of 1 to 64 letters, digits and . _ -", f"{at}.name")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    canonical(mapping(parameters, f"{at}.parameters"), f"{at}.parameters")
    description = function.get("description")
    return Tool(name, "" if description is None else text(description, f"{at}.description"), parameters)


def _choice(value: Any, tools: tuple[Tool, ...]) -> str:
    if value is None:
        return AUTO if tools else NONE
    if isinstance(value, dict):
        if value.get("type") != "function":
            raise Refused("tool_choice is of a type that is not function", "tool_choice")
        holder = value.get("function", value)
        name = text(mapping(holder, "tool_choice.function").get("name"), "tool_choice.function.name")
        if name not in {tool.name for tool in tools}:
            raise Refused("tool_choice names a tool that is not among tools", "tool_choice")
        return name
    if value not in (AUTO, NONE, REQUIRED):
        raise Refused("tool_choice is none of auto, none, required and a function", "tool_choice")
    if value == REQUIRED and not tools:
        raise Refused("tool_choice requires a call and there are no tools", "tool_choice")
    return str(value)
