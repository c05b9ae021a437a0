"""The list of models with OpenAI's own client."""

import openai
import pytest

from tests.node.http.conftest import Door
from tests.node.http.scripted import Scripted, agent


def test_a_node_lists_what_it_can(client: openai.OpenAI, door: Door) -> None:
    assert [model.id for model in client.models.list()] == ["kith", "kith/panel", door.model]
    one = client.models.retrieve(f"{door.name}/{door.model}")
    assert one.owned_by == door.name
    assert "chat" in one.kith["abilities"]  # type: ignore[attr-defined]
    assert client.models.retrieve("kith/panel").id == "kith/panel"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")


async def test_models_of_the_mesh_are_listed_once_with_their_nodes() -> None:
    mesh = Scripted([agent("b", "org/m"), agent("a", "org/m", ("chat", "embed"), embedding_size=8), agent("a", "x")])
    async with mesh.client() as client:
        models = {model.id: model async for model in client.models.list()}
        assert list(models) == ["kith", "kith/panel", "org/m", "x"]
        about = models["org/m"].kith  # type: ignore[attr-defined]
        assert about["nodes"] == ["b", "a"]
        assert about["embedding_size"] == 8
        assert models["x"].owned_by == "a"
        assert (await client.models.retrieve("org/m")).owned_by == "kith"
