"""Which agents a model name means.

    kith          the best of the mesh, for each request anew
    kith/panel    several agents, and what they agree on (panel.py)
    MODEL         the agents that serve it, as `kith nodes` names it
    NODE/MODEL    those of one node, by its name or the beginning of its id; NODE/kith: whatever it serves

Abilities are looked at here as well, though the router chooses: a client hears which of its fields nobody can honour.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.identity import NodeId
from mesh.replica import Replica
from mesh.wire import facts_pb2
from node.abilities import offered
from node.errors import ExitCode
from node.http.fields import Refused

ANY_MODEL = "kith"
PANEL = "kith/panel"
#: Letters of a node's id that name it.
ID_LETTERS_MIN = 4


@dataclass(frozen=True)
class Live:
    """An agent of a node that is alive in this node's view."""

    node_id: NodeId
    node_name: str
    agent: facts_pb2.AgentProfile


@dataclass(frozen=True)
class Named:
    """What a name means. Empty `model` or `node`: any."""

    agents: tuple[Live, ...]
    model: str = ""
    node: str = ""
    panel: bool = False


def live_agents(replica: Replica) -> tuple[Live, ...]:
    """This node's first, then by id."""
    found = []
    for node_id in sorted(replica.membership.view(), key=lambda one: (one != replica.me, one)):
        profile = replica.profiles.of(node_id)
        if profile is not None:
            found += [Live(NodeId(node_id), profile.name, agent) for agent in profile.agents]
    return tuple(found)


def resolve(name: str, agents: tuple[Live, ...]) -> Named:
    """Raises `Refused` (`model-unknown`)."""
    if name == ANY_MODEL:
        return Named(agents)
    if name == PANEL:
        return Named(agents, panel=True)
    if those := tuple(one for one in agents if one.agent.model == name):
        return Named(those, model=name)
    node, _, model = name.partition("/")
    those = tuple(
        one
        for one in agents
        if (one.node_name == node or (len(node) >= ID_LETTERS_MIN and one.node_id.startswith(node)))
        and model in (one.agent.model, ANY_MODEL)
    )
    # A router takes a node by name, and two may have the same.
    if those and len({one.node_id for one in those}) == 1:
        return Named(those, "" if model == ANY_MODEL else model, those[0].node_id)
    raise Refused(
        f"no live node serves the model {name[:100]!r}",
        "model",
        "GET /v1/models lists them.",
        "model-unknown",
        ExitCode.NOT_FOUND,
    )


def check_abilities(named: Named, needs: Mapping[str, str]) -> None:
    """Raises `Refused` where agents are there, and none of them has all abilities.

    Args:
        needs: ability → field that asks for it.
    """
    if not named.agents:
        return  # the router says why
    for ability, param in needs.items():
        if not any(ability in offered(one.agent.abilities) for one in named.agents):
            raise Refused(
                f"{param} can not be honoured: no live agent of this name has the ability {ability!r}",
                param,
                "GET /v1/models tells what each can.",
                "unsupported",
            )
    if not any(needs.keys() <= offered(one.agent.abilities) for one in named.agents):
        raise Refused(
            f"no live agent has all of {', '.join(sorted(needs))}", next(iter(needs.values())), code="unsupported"
        )
