"""What an agent must be able to do to serve a request: the words of `AgentProfile.abilities`.

Does not: know what an agent can; its engine says so when it has loaded.
"""

from mesh.wire import engine_pb2


def needed(request: engine_pb2.GenerateRequest) -> frozenset[str]:
    """Without an agent that has all of these, nobody can serve the request."""
    wanted = {
        "chat": bool(request.messages),
        "generate": not request.messages,
        "continue": bool(request.continue_from or request.continue_tokens),
        "grammar": bool(request.grammar or request.json_schema),
        "logprobs": request.logprobs,
        "tools": bool(request.tools_json),
    }
    return frozenset(ability for ability, is_wanted in wanted.items() if is_wanted)
