"""/v1/models: the names that a client may ask for, and what stands behind them.

`kith` and `kith/panel` come first, then the models of the live mesh. What agents can (abilities, context) stands in the
field `kith`, so that a client need not try.
"""

from typing import Any

from mesh.replica import Replica
from node.http.naming import ANY_MODEL, PANEL, Live, live_agents, resolve


def listed(replica: Replica) -> dict[str, Any]:
    """The list."""
    agents = live_agents(replica)
    by_model: dict[str, list[Live]] = {}
    for one in agents:
        by_model.setdefault(one.agent.model, []).append(one)
    data = [_entry(ANY_MODEL, agents), _entry(PANEL, agents)]
    data += [_entry(model, tuple(those)) for model, those in sorted(by_model.items())]
    return {"object": "list", "data": data}


def one(replica: Replica, name: str) -> dict[str, Any]:
    """Raises `Refused` (`model-unknown`)."""
    return _entry(name, resolve(name, live_agents(replica)).agents)


def _entry(name: str, agents: tuple[Live, ...]) -> dict[str, Any]:
    nodes = list(dict.fromkeys(agent.node_name for agent in agents))
    alone = name not in (ANY_MODEL, PANEL) and len(nodes) == 1
    profiles = [agent.agent for agent in agents]
    about = {
        "nodes": nodes,
        "models": sorted({profile.model for profile in profiles}),
        "abilities": sorted({ability for profile in profiles for ability in profile.abilities}),
        "context_tokens": max((profile.context_tokens for profile in profiles), default=0),
        "embedding_size": max((profile.embedding_size for profile in profiles), default=0),
    }
    return {"id": name, "object": "model", "created": 0, "owned_by": nodes[0] if alone else "kith", "kith": about}
