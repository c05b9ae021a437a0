"""Which agents a model and a node mean to a router."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.wire import common_pb2, facts_pb2
from node.route import Route, agents_named, went_away

IDS = ("a" * 32, "abcd" + "b" * 28)


@pytest.mark.parametrize(
    ("model", "node", "expected"),
    [
        ("", "", ["m", "n", "m"]),
        ("n", "", ["n"]),
        ("", "home", ["m", "n"]),
        ("", "abcd", ["m"]),
        ("", "abc", []),
        ("n", "abcd", []),
        ("", IDS[0], ["m", "n"]),
    ],
)
def test_names_narrow_the_choice(model: str, node: str, expected: list[str]) -> None:
    profiles = {
        IDS[0]: facts_pb2.NodeProfile(
            name="home", agents=[facts_pb2.AgentProfile(model="m"), facts_pb2.AgentProfile(model="n")]
        ),
        IDS[1]: facts_pb2.NodeProfile(name=IDS[0], agents=[facts_pb2.AgentProfile(model="m")]),
    }
    membership = SimpleNamespace(view=lambda: frozenset({*IDS, "c" * 32}))
    replica = cast(Any, SimpleNamespace(membership=membership, profiles=SimpleNamespace(of=profiles.get)))
    assert [agent.model for _, _, agent in agents_named(replica, model, node)] == expected


def test_a_route_is_a_choice_of_its_agent() -> None:
    route = Route(common_pb2.AgentRef(node_id=IDS[0], agent="default"), "home", "m", 2.0, 0.5, 0.1, b"v")
    assert (route.choice.agent, route.choice.first_token_s, route.choice.vocabulary) == (route.id, 0.5, b"v")
    assert "home went away" in went_away(route).message
