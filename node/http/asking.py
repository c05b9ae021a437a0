"""From what a client asked to an answer that is under way: who can do it, and what they are told.

Idea: here the fields of a request meet the abilities of the live agents, so that what nobody can honour is refused with
the field's name before anybody works on it.
"""

from collections.abc import Hashable

from mesh.replica import Replica
from mesh.wire import engine_pb2
from node.abilities import offered
from node.errors import KithError
from node.http.answering import Answering, Ask, routed
from node.http.embeddings import owner_of
from node.http.fields import Refused
from node.http.naming import PANEL, Named, check_abilities, live_agents, resolve
from node.http.panel import convened
from node.router import Router


def answered(router: Router, replica: Replica, ask: Ask, who: Hashable) -> Answering:
    """Raises `KithError`, with the field where it is one's fault."""
    named = resolve(ask.model, live_agents(replica))
    for request in ask.requests:
        request.owner = owner_of(who)
    if any(message.tool_calls_json or message.role == "tool" for message in ask.requests[0].messages):
        ask.needs.setdefault("tools", "messages")
    _check_biases(ask.requests[0], named)
    if named.panel:
        return convened(router, named, ask, who)
    if ask.options:
        raise Refused(f"options are for the model {PANEL}", "options", "Leave it out, or ask a panel.")
    if ask.tools.active:
        _tell_of_tools(ask, named)
    check_abilities(named, ask.needs)
    try:
        return routed(router, named, ask, who)
    except KithError as error:
        if error.code == "prompt-too-long":  # for every agent
            field = "messages" if ask.requests[0].messages else "prompt"
            raise Refused(error.message, field, error.remedy, error.code) from None
        raise


def _tell_of_tools(ask: Ask, named: Named) -> None:
    """Through the chat template, where one knows tools; a call that is required can be asked for in words too."""
    needed = ask.needs.keys() | {"tools"}
    knows = any(needed <= offered(one.agent.abilities) for one in named.agents)
    for request in ask.requests:
        if knows or not ask.tools.forced:
            request.tools_json = ask.tools.as_json()
        else:
            _say_first(request, ask.tools.in_words())
    if knows:
        ask.needs.setdefault("tools", "tools")


def _say_first(request: engine_pb2.GenerateRequest, words: str) -> None:
    """Into the system message: templates want one, and at the beginning."""
    if request.messages and request.messages[0].role == "system":
        request.messages[0].content += f"\n\n{words}"
        return
    rest = list(request.messages)
    del request.messages[:]
    request.messages.add(role="system", content=words)
    request.messages.extend(rest)


def _check_biases(request: engine_pb2.GenerateRequest, named: Named) -> None:
    if request.sampling.logit_bias and len({one.agent.model for one in named.agents}) > 1:
        raise Refused(
            "logit_bias holds token ids, which mean something else to each model", "logit_bias", "Name one model."
        )
