"""The door of one node, and agents on two: names of nodes, and a panel whose members are really apart."""

from typing import Any

import openai

from scripts.daemons import formed, until
from tests.conftest import DaemonFactory


async def test_a_panel_sits_on_both_and_a_node_is_asked_by_its_name(daemon: DaemonFactory) -> None:
    a = daemon("--http", "127.0.0.1:0", name="a")
    status = await a.ready()
    address = status.addresses[0]
    b = daemon("--seed", f"{address.host}:{address.port}", name="b")
    await b.ready()
    await formed([a, b])
    url = f"http://{status.http_address}/v1"
    asked: Any = [{"role": "user", "content": "Say it. And this."}]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:

        async def known() -> bool:
            about: Any = await client.models.retrieve("kith")
            return "b" in about.kith["nodes"]

        await until(known, 20.0, "the profile of b")  # it travels as a fact
        raw = await client.chat.completions.with_raw_response.create(model="b/kith", messages=asked)
        assert raw.headers["x-kith-node"] == (await b.status()).node_id
        assert raw.parse().choices[0].message.content == "Say it. And this."
        for options in (None, ["yes", "no"]):
            whole: Any = await client.chat.completions.create(
                model="kith/panel", messages=asked, extra_body={"options": options}
            )
            ballots = whole.kith["panel"]["ballots"]
            assert {ballot["node"] for ballot in ballots} == {"a", "b"}
            assert not any("problem" in ballot for ballot in ballots)
