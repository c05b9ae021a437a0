"""What a request needs of an agent beyond time and room, in the words of `AgentProfile.abilities`.

    chat         messages through the model's template
    generate     a prompt as it is
    continue     goes on exactly from a given beginning
    continue_form  does so within a grammar or schema: others begin the form anew
    logprobs     tells log-probabilities of what it wrote
    tools        its template knows tools
    json_schema  holds an answer to a JSON schema
    grammar      holds an answer to a GBNF grammar; whoever does that can hold it to a schema as well
    score, embed, kv  other requests than generating: EngineDoor.score, embed, export_kv

A request goes only to agents that have all it needs; a sampling parameter is no ability.
"""

from collections.abc import Iterable

from mesh.wire import engine_pb2
from node.gguf import GgufHeader

_WRITING = ("generate", "chat", "score", "embed", "grammar", "logprobs", "continue")
#: Of each engine that loads a file which can write, whatever it is; "tools" and "kv" depend on the file.
FILE_ABILITIES = {"llama": (*_WRITING, "continue_form"), "xllamacpp": (*_WRITING, "json_schema")}
#: Of any of them with a file that is made for vectors.
EMBEDDER_ABILITIES = ("embed",)

#: Abilities that come with another one.
_IMPLIED = {"grammar": frozenset({"json_schema"})}


def needed(request: engine_pb2.GenerateRequest) -> frozenset[str]:
    """Every ability that an agent must have to answer the request as it is meant."""
    continues = bool(request.continue_from or request.continue_tokens)
    speaks_of_tools = any(message.tool_calls_json or message.role == "tool" for message in request.messages)
    wanted = {
        "chat": bool(request.messages),
        "generate": not request.messages,
        "continue": continues,
        "continue_form": continues and bool(request.json_schema or request.grammar),
        "logprobs": request.logprobs,
        "tools": bool(request.tools_json) or speaks_of_tools,
        "json_schema": bool(request.json_schema),
        "grammar": bool(request.grammar),
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def of_file(engine: str, header: GgufHeader) -> tuple[str, ...]:
    """What an engine will offer with this file, as far as the header tells."""
    if header.embeds_only:
        return EMBEDDER_ABILITIES
    return (*FILE_ABILITIES[engine], *(["tools"] if "tools" in header.chat_template else []))


def offered(abilities: Iterable[str]) -> frozenset[str]:
    """What an agent can do: what its profile says, and what comes with that."""
    told = frozenset(abilities)
    return told.union(*(_IMPLIED[name] for name in told & _IMPLIED.keys()))
