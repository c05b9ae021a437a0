"""Which agent a request goes to: what a router finds, and what is said where that one is gone."""

import re
from dataclasses import dataclass

from mesh.answer import Choice
from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import common_pb2, facts_pb2
from node.errors import ExitCode, KithError
from node.leader import agent_id

#: Characters a token, for estimating a prompt without asking the engine.
CHARACTERS_PER_TOKEN = 3.5
#: And in a text that has the fewest tokens: English prose has 5.4 (SmolLM2, Qwen 2.5, Gemma 3), tables and blanks more.
CHARACTERS_PER_TOKEN_MOST = 8.0


@dataclass(frozen=True)
class Route:
    """An agent for a request. Times are seconds."""

    agent: common_pb2.AgentRef
    node_name: str
    model: str
    cost_s: float
    first_token_s: float = 0.0
    step_s: float = 0.0
    vocabulary: bytes = b""
    capacity_tokens: int = 0  # of its cache; 0: not known
    kv_holder: str = ""  # a node to take the prompt's KV from
    kv_tokens: int = 0
    weights: bytes = b""  # agents with the same give the same vectors and scores; empty: not known of which
    model_asked: str = ""
    node_asked: str = ""

    @property
    def id(self) -> str:
        return agent_id(self.agent.node_id, self.agent.agent)

    @property
    def choice(self) -> Choice:
        return Choice(self.id, self.first_token_s, self.step_s, self.model, self.vocabulary)


def agents_named(replica: Replica, model: str, node: str) -> list[tuple[NodeId, str, facts_pb2.AgentProfile]]:
    """Node, its name, agent: of the live view. `model` and `node` (name or id prefix) narrow it; empty: any."""
    found: list[tuple[NodeId, str, facts_pb2.AgentProfile]] = []
    for node_id in sorted(replica.membership.view()):
        profile = replica.profiles.of(node_id)
        if profile is not None and _is(node_id, profile.name, node):
            found += [(node_id, profile.name, agent) for agent in profile.agents if model in ("", agent.model)]
    return found


def estimated_tokens(characters: int, characters_per_token: float = CHARACTERS_PER_TOKEN) -> int:
    """Of a text with so many; at least 1."""
    return int(characters / characters_per_token) + 1


def weights_of(agent: facts_pb2.AgentProfile) -> bytes:
    """By its file; the echo engine, which has none, is the same everywhere. Of other back ends nothing is known."""
    return agent.model_sha256 or (b"echo" if agent.backend == "echo" else b"")


def went_away(route: Route) -> KithError:
    return KithError(
        "node-unreachable",
        f"{route.node_name} went away while it answered",
        "Ask again: another node answers then.",
        ExitCode.UNAVAILABLE,
    )


def _is(node_id: str, name: str, wanted: str) -> bool:
    if re.fullmatch("[0-9a-f]{32}", wanted):  # an id: whoever calls itself so is not meant
        return node_id == wanted
    return not wanted or name == wanted or (len(wanted) >= 4 and node_id.startswith(wanted))
