"""What an answer has to look like: `response_format` of chat completions, `text.format` of responses.

Both become one JSON schema, which an agent with the ability "grammar" holds its output to, token by token; `strict` is
therefore always so. Does not: judge the schema, which the agent's engine does.
"""

from typing import Any

from node.http.fields import Refused, canonical, mapping

#: Any JSON object, in the engine's terms.
ANY_OBJECT = "{}"


def schema_of(chosen: Any, param: str) -> str:
    """JSON text of the schema; empty: plain text. Raises `Refused`.

    Args:
        chosen: the field's value. A schema may stand under `json_schema` (chat) or beside the type (responses).
    """
    if chosen is None:
        return ""
    described = mapping(chosen, param)
    match described.get("type"):
        case "text":
            return ""
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            holder = described.get("json_schema", described)
            schema = mapping(holder, f"{param}.json_schema").get("schema")
            if not isinstance(schema, dict):
                raise Refused(f"{param} holds no schema", param)
            return canonical(schema, param)
        case _:
            raise Refused(f"{param} has a type that is not text, json_object or json_schema", param)
