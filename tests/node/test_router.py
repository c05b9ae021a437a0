"""Which agent is asked: by cost, with what it holds of the prompt, what it has to do, and what it can do."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.prefixes import BLOCK_CHARACTERS, BLOCKS_OF_ONE_MAX, blocks_of
from mesh.wire import common_pb2, engine_pb2, facts_pb2, membership_pb2
from node.engine_door import EngineDoor
from node.errors import ExitCode, KithError
from node.kv_moves import Brought
from node.route import CHARACTERS_PER_TOKEN, CHARACTERS_PER_TOKEN_MOST
from node.router import HEDGES_BURST, Router, need_of

ME, ONE, TWO = ("a" * 32, "b" * 32, "c" * 32)
Event = engine_pb2.GenerateEvent
LONG = "It is a long text. " * 300


class Speaking:
    """An engine that says so many words, and how much of the prompt it had cached."""

    loaded = None

    def __init__(self, cached: float = 0.0, fails: KithError | None = None) -> None:
        self.cached = cached
        self.fails = fails
        self.asked: list[engine_pb2.GenerateRequest] = []
        self.heard = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def generate(self, request: engine_pb2.GenerateRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        self.heard.set()
        if self.fails is not None:
            raise self.fails
        yield Event(started=Event.Started(prompt_tokens=1000, cached_tokens=int(1000 * self.cached)))
        await self.go.wait()
        yield Event(delta=Event.Delta(text="yes", tokens=1, token_ids=[1]))
        yield Event(finished=Event.Finished(reason="stop", usage=common_pb2.Usage(completion_tokens=1)))


class World:
    """A router on node `ME`, with what it knows of others. No other node is really there."""

    def __init__(self, engine: Speaking | None = None) -> None:
        self.profiles: dict[str, facts_pb2.NodeProfile] = {}
        self.loads: dict[str, membership_pb2.NodeLoad] = {}
        membership = SimpleNamespace(
            view=lambda: frozenset(self.profiles),
            load_of=lambda node_id: self.loads.get(node_id, membership_pb2.NodeLoad()),
        )
        replica = SimpleNamespace(
            me=ME, denied=False, membership=membership, profiles=SimpleNamespace(of=self.profiles.get)
        )
        self.engine = engine or Speaking()
        kv = SimpleNamespace(move_s=self._move_s, bring=self._bring, told=self._told)
        self.dear: set[str] = set()
        self.weighed: list[tuple[str, str]] = []
        self.brought: list[tuple[str, int]] = []
        links = SimpleNamespace(stub=lambda _: None)
        self.further: dict[str, Speaking] = {}
        door = EngineDoor(cast(Any, self.engine), lambda agent: cast(Any, self.further.get(agent, self.engine)))
        self.router = Router(cast(Any, replica), door, cast(Any, links), cast(Any, kv))

    def _move_s(self, tokens: int, _: facts_pb2.AgentProfile, holder: str, taker: str) -> float:
        assert holder != taker
        self.weighed.append((holder, taker))
        return 100.0 if holder in self.dear else 0.02 + tokens / 5000

    def _told(self, holder: str, taker: str, expected: int, started: Event.Started) -> None:
        assert (holder, taker) == (ONE, ME)
        self.brought.append(("told", min(expected, started.cached_tokens)))

    async def _bring(self, holder: str, _: engine_pb2.GenerateRequest, tokens: int) -> Brought:
        self.brought.append((holder, tokens))
        return Brought(tokens, 0.1)

    def agent(self, node_id: str, **fields: Any) -> None:
        given: dict[str, Any] = {
            "agent": "default",
            "model": "m",
            "abilities": ["generate", "chat", "continue"],
            "prefill_tokens_per_s": 100.0,
            "decode_tokens_per_s": 20.0,
            "context_tokens": 4096,
            "slots": 1,
        } | fields
        profile = self.profiles.get(node_id) if given["agent"] != "default" else None
        profile = self.profiles[node_id] = profile or facts_pb2.NodeProfile(name=node_id[:1])
        profile.agents.append(facts_pb2.AgentProfile(**given))

    def further_agent(self, name: str, engine: Speaking, **fields: Any) -> None:
        """One more model of this node."""
        self.further[name] = engine
        self.agent(ME, agent=name, **fields)


def chat(*texts: str, **fields: Any) -> engine_pb2.GenerateRequest:
    roles = ["user", "assistant"] * len(texts)
    messages = [engine_pb2.ChatMessage(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
    return engine_pb2.GenerateRequest(messages=messages, max_tokens=10, **fields)


async def said(world: World, request: engine_pb2.GenerateRequest) -> str:
    route = world.router.choose(request)
    return "".join([event.delta.text async for event in world.router.generate(route, request)])


def test_the_faster_one_is_asked_and_a_tie_stays_here() -> None:
    world = World()
    world.agent(ME)
    world.agent(ONE)
    assert world.router.choose(chat("x")).agent.node_id == ME
    world.agent(TWO, prefill_tokens_per_s=300.0)
    assert world.router.choose(chat("x")).agent.node_id == TWO


def test_a_model_that_has_to_be_loaded_first_costs_the_time_of_loading() -> None:
    world = World()
    world.agent(ONE, decode_tokens_per_s=40.0, load_wait_seconds=30.0)
    world.agent(TWO)
    request = chat("hello")
    loaded, other = world.router.routes(request)[0]
    assert (loaded.agent.node_id, other.agent.node_id) == (TWO, ONE)
    assert 30.0 < other.first_token_s < 31.0  # nobody takes it for late before that
    world.agent(ONE, decode_tokens_per_s=40.0)
    assert world.router.choose(request).agent.node_id == ONE


def test_what_a_node_tells_of_its_loads_counts_before_its_profile() -> None:
    world = World()
    world.agent(ONE, decode_tokens_per_s=40.0, load_wait_seconds=1.0)
    world.agent(TWO, decode_tokens_per_s=40.0, load_wait_seconds=5.0)
    assert world.router.choose(chat("x")).agent.node_id == ONE
    loading = membership_pb2.AgentLoad(agent="default", load_wait_seconds=30.0)  # others are before it
    world.loads[ONE] = membership_pb2.NodeLoad(agents=[loading])
    route = world.router.choose(chat("x"))
    assert route.agent.node_id == TWO
    assert world.router.choose(chat("x"), node="b").first_token_s > 30.0


def test_a_request_goes_only_where_it_can_be_served() -> None:
    world = World()
    world.agent(ME)
    world.agent(ONE, abilities=["chat", "tools", "grammar"], prefill_tokens_per_s=1.0, adapters=["law"])
    assert world.router.choose(chat("x", tools_json="[]")).agent.node_id == ONE
    assert world.router.choose(chat("x", json_schema="{}")).agent.node_id == ONE, "by its grammar"
    assert world.router.choose(chat("x", adapter="law")).agent.node_id == ONE
    with pytest.raises(KithError) as caught:
        world.router.choose(chat("x", logprobs=True))
    assert "a: it can not tell log-probabilities" in caught.value.message
    world.loads[ONE] = membership_pb2.NodeLoad(engine_stalled=True)
    with pytest.raises(KithError, match="stands still"):
        world.router.choose(chat("x", tools_json="[]"))


def test_what_was_told_of_the_queue_counts() -> None:
    world = World()
    world.agent(ME)
    world.agent(ONE)
    world.loads[ME] = membership_pb2.NodeLoad(queued_prompt_tokens=500)
    assert world.router.choose(chat("x")).agent.node_id == ONE
    world.loads[ONE] = membership_pb2.NodeLoad(slots_busy=2)
    assert world.router.choose(chat("x")).agent.node_id == ME, "what others sent there is guessed"


def test_each_model_of_a_node_is_charged_with_its_own_requests() -> None:
    world = World()
    world.agent(ME)
    world.further_agent("other", Speaking(), model="n")
    world.agent(ONE, decode_tokens_per_s=10.0)
    busy = membership_pb2.AgentLoad(agent="other", requests=4, queued_prompt_tokens=900)
    world.loads[ME] = membership_pb2.NodeLoad(slots_busy=4, queued_prompt_tokens=900, agents=[busy])
    route = world.router.choose(chat("x"))
    assert (route.agent.node_id, route.agent.agent) == (ME, "default")
    assert route.first_token_s < 1.0, "nobody is before it"
    other = world.router.choose(chat("x"), model="n")
    assert other.first_token_s > 4 * 256 / 20


async def test_what_is_under_way_counts_before_anybody_tells() -> None:
    world = World()
    world.agent(ME)
    world.agent(ONE)
    world.engine.go.clear()
    first = asyncio.ensure_future(said(world, chat("x", priority=1)))
    await world.engine.heard.wait()
    assert world.router.choose(chat("x")).agent.node_id == ONE
    world.engine.go.set()
    assert await first == "yes"
    world.loads[ME] = membership_pb2.NodeLoad(slots_busy=1)  # as of a moment ago
    assert world.router.choose(chat("x")).agent.node_id == ME


async def test_a_dialogue_stays_where_it_is_until_the_queue_there_is_longer() -> None:
    world = World(Speaking(cached=1.0))
    world.agent(ME)
    first = chat(LONG)
    assert await said(world, first) == "yes"
    world.agent(ONE, prefill_tokens_per_s=150.0)
    following = chat(LONG, "yes", "And now?")
    assert world.router.choose(following).agent.node_id == ME
    assert world.router.choose(chat("Another " + LONG)).agent.node_id == ONE
    world.loads[ME] = membership_pb2.NodeLoad(queued_prompt_tokens=1200)
    assert world.router.choose(following).agent.node_id == ONE, "twelve seconds of queue against eleven of reading"


async def test_an_engine_without_a_cache_keeps_nobody() -> None:
    world = World(Speaking(cached=0.0))
    world.agent(ME)
    for _ in range(12):
        await said(world, chat(LONG))
    world.agent(ONE, prefill_tokens_per_s=150.0)
    assert world.router.choose(chat(LONG, "yes", "And now?")).agent.node_id == ONE


async def test_kv_is_taken_from_the_holder_where_that_is_cheaper() -> None:
    world = World(Speaking(cached=1.0))
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    world.agent(ME, **kv)
    await said(world, chat(LONG))
    world.agent(ONE, **kv)
    world.loads[ME] = membership_pb2.NodeLoad(queued_prompt_tokens=5000)
    route = world.router.choose(chat(LONG, "yes", "And now?"))
    assert (route.agent.node_id, route.kv_holder) == (ONE, ME)
    assert 1500 < route.kv_tokens < 1700
    assert route.cost_s < 3.0, "not the sixteen of reading it"
    world.agent(ONE, **(kv | {"kv_layout": "q8_0"}))
    assert world.router.choose(chat(LONG, "yes", "And now?")).kv_holder == ""
    # The other way round: this node takes it before it generates.
    world.agent(ONE, **kv)
    world.loads = {ONE: membership_pb2.NodeLoad(queued_prompt_tokens=9000)}
    world.router.prefixes.sent([], ME + "/default", 100_000)  # and forgets
    for _ in range(2):
        world.router.prefixes.answered(ONE + "/default", 1.0, 1.0)
    route = world.router.choose(chat(LONG))
    assert route.kv_holder == "", "nobody holds it now"


async def test_the_holder_is_asked_before_this_nodes_engine_reads() -> None:
    world = World(Speaking())
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    world.agent(ME, **kv)
    world.agent(ONE, **kv)
    world.router.prefixes.sent(blocks_of([f"user\0{LONG}"]), ONE + "/default", 2000)
    world.loads[ONE] = membership_pb2.NodeLoad(queued_prompt_tokens=9000)
    assert await said(world, chat(LONG)) == "yes"
    assert world.brought[0][0] == ONE
    assert world.brought[1] == ("told", 0), "the engine found nothing in its cache"


def test_no_more_kv_is_expected_than_the_beginning_that_is_known() -> None:
    world = World()
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32), "context_tokens": 1 << 20}
    world.agent(ME, **kv)
    world.agent(ONE, **kv)
    known = "x" * (BLOCK_CHARACTERS * BLOCKS_OF_ONE_MAX - len("user\0"))
    world.router.prefixes.sent(blocks_of([f"user\0{known}"]), ONE + "/default", 20_000)
    route = world.router.choose(chat(known + "y" * 3 * len(known)), node=ME)
    assert route.kv_holder == ONE
    assert route.kv_tokens == pytest.approx(len(known) / CHARACTERS_PER_TOKEN, rel=0.01)


def test_a_node_that_is_named_takes_kv_from_others() -> None:
    world = World()
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    world.agent(ME, **kv)
    world.agent(ONE, **kv)
    world.router.prefixes.sent(blocks_of([f"user\0{LONG}"]), ONE + "/default", 2000)
    route = world.router.choose(chat(LONG), node=ME)
    assert (route.agent.node_id, route.kv_holder) == (ME, ONE)


def test_kv_is_taken_from_whom_it_comes_at_the_least_cost_though_another_one_holds_more() -> None:
    world = World()
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    for node in (ME, ONE, TWO):
        world.agent(node, **kv)
    blocks = blocks_of([f"user\0{LONG}"])
    world.router.prefixes.sent(blocks, ONE + "/default", 2000)
    world.router.prefixes.sent(blocks[:-3], TWO + "/default", 2000)
    assert world.router.choose(chat(LONG), node=ME).kv_holder == ONE
    world.dear = {ONE}
    world.weighed.clear()
    route = world.router.choose(chat(LONG), node=ME)
    assert route.kv_holder == TWO
    assert sorted(world.weighed) == [(ONE, ME), (TWO, ME)]
    assert 1000 < route.kv_tokens < 1500
    world.dear = {ONE, TWO}
    route = world.router.choose(chat(LONG), node=ME)
    assert (route.kv_holder, route.kv_tokens) == ("", 0)


def test_a_holder_of_no_more_than_an_agent_itself_holds_is_not_weighed() -> None:
    world = World()
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    blocks = blocks_of([f"user\0{LONG}"])
    for node, known in ((ME, blocks), (ONE, blocks[:-3]), (TWO, [])):
        world.agent(node, **kv)
        world.router.prefixes.sent(known, f"{node}/default", 2000)
    world.router.choose(chat(LONG))
    assert sorted(world.weighed) == [(ME, ONE), (ME, TWO), (ONE, TWO)]


def test_who_is_left_out_or_stands_still_is_not_asked_for_what_it_holds() -> None:
    world = World()
    kv = {"abilities": ["chat", "kv"], "kv_layout": "f16", "model_sha256": bytes(32)}
    world.agent(ME, **kv)
    world.agent(ONE, **kv)
    world.router.prefixes.sent(blocks_of([f"user\0{LONG}"]), ONE + "/default", 2000)
    world.loads[ONE] = membership_pb2.NodeLoad(queued_prompt_tokens=9000)
    assert world.router.choose(chat(LONG)).kv_holder == ONE
    [route] = world.router.routes(chat(LONG), without={ONE + "/default"})[0]
    assert route.kv_holder == ""
    world.loads[ONE] = membership_pb2.NodeLoad(engine_stalled=True)
    assert world.router.choose(chat(LONG)).kv_holder == ""


def test_an_id_is_nobodys_name() -> None:
    world = World()
    world.agent(ONE)
    world.agent(TWO, prefill_tokens_per_s=1e6, decode_tokens_per_s=1e6)
    world.profiles[TWO].name = ONE
    assert world.router.choose(chat("x"), node=ONE).agent.node_id == ONE


def test_what_is_written_at_most_is_what_needs_room() -> None:
    world = World()
    world.agent(ME, context_tokens=16_384)
    request = chat("x")
    request.max_tokens = 100_000
    assert world.router.choose(request).agent.node_id == ME


async def test_token_ids_reach_only_who_asked_for_them() -> None:
    world = World()
    world.agent(ME)
    for wanted in (False, True):
        request = chat("x", want_tokens=wanted)
        route = world.router.choose(request)
        deltas = [event.delta async for event in world.router.generate(route, request) if event.HasField("delta")]
        assert [list(delta.token_ids) for delta in deltas] == ([[1]] if wanted else [[]])
        assert world.engine.asked[-1].want_tokens, "another agent could go on from them"


async def test_an_unreachable_agent_is_replaced_before_the_first_token() -> None:
    world = World()
    world.agent(ME, prefill_tokens_per_s=1.0)
    world.agent(ONE)
    request = chat("x")
    route = world.router.choose(request)
    assert route.agent.node_id == ONE, "which no link reaches"
    assert [event.delta.text async for event in world.router.generate(route, request)][1] == "yes"


@pytest.mark.parametrize("code", ["agent-refused", "prompt-too-long"])
async def test_one_agents_refusal_is_not_everybodys(code: str) -> None:
    refusing = Speaking(fails=KithError(code, "the server knows no seed", "Leave it out.", ExitCode.BAD_INPUT))
    world = World(refusing)
    world.agent(ME, decode_tokens_per_s=90.0)
    world.further_agent("slow", Speaking())
    assert await said(world, chat("x")) == "yes"
    assert len(refusing.asked) == 1
    world.further["slow"].fails = KithError("agent-refused", "neither does this one", "", ExitCode.BAD_INPUT)
    with pytest.raises(KithError) as caught:
        await said(world, chat("x"))
    assert "knows no seed" in caught.value.message
    assert "neither does this one" in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("agent-refused", ExitCode.BAD_INPUT)


async def test_what_is_no_request_at_all_is_refused_by_the_first() -> None:
    world = World(Speaking(fails=KithError("bad-schema", "no schema", "", ExitCode.BAD_INPUT)))
    world.agent(ME, decode_tokens_per_s=90.0)
    world.further_agent("slow", Speaking())
    with pytest.raises(KithError, match="no schema"):
        await said(world, chat("x"))
    assert not world.further["slow"].asked


async def test_an_answer_asked_of_one_node_stays_with_it() -> None:
    world = World()
    world.agent(ME)
    world.agent(ONE)
    route = world.router.choose(chat("x"), node="b")
    with pytest.raises(KithError) as caught:
        [event async for event in world.router.generate(route, chat("x"))]
    assert caught.value.code == "node-unreachable"


def test_hedges_are_a_part_of_the_answers() -> None:
    router = World().router
    granted = sum(router._may_hedge() for _ in range(50))
    assert granted == HEDGES_BURST
    router._answers += 30
    assert sum(router._may_hedge() for _ in range(50)) == 3


def test_whom_a_prompt_may_not_fit_is_asked_where_it_surely_fits_nobody() -> None:
    """English prose has 5 characters a token and more; by the estimate for all texts this one has 4,286 tokens. Who
    holds it, the engine knows."""
    world = World()
    world.agent(ME)
    prose = chat("x" * 15_000)
    assert world.router.choose(prose).id == f"{ME}/default"
    world.agent(ONE, context_tokens=8192, prefill_tokens_per_s=10.0)
    assert world.router.choose(prose).id == f"{ONE}/default", "though it is ten times as slow"
    assert world.router.choose(chat("x" * 10_000)).id == f"{ME}/default"
    with pytest.raises(KithError, match="the largest context holds 4,096") as caught:
        world.router.choose(chat("x" * 40_000), node=ME)
    assert caught.value.code == "prompt-too-long"


@pytest.mark.parametrize(("characters", "code"), [(32_687, "no-agent"), (32_688, "prompt-too-long")])
def test_what_is_too_long_for_all_is_the_askers_to_change_and_no_matter_of_waiting(characters: int, code: str) -> None:
    request = chat("x" * characters)
    need = need_of(request, CHARACTERS_PER_TOKEN_MOST)
    assert need.prompt_tokens + need.output_tokens == 4096 + (code != "no-agent")
    world = World()
    world.agent(ME)
    world.loads[ME] = membership_pb2.NodeLoad(draining=True)
    with pytest.raises(KithError) as caught:
        world.router.choose(request)
    assert caught.value.code == code
    assert ("Wait" in caught.value.remedy) == (code == "no-agent")
    world.agent(ONE, context_tokens=0)  # it does not say how much it takes
    world.loads[ONE] = membership_pb2.NodeLoad(draining=True)
    with pytest.raises(KithError) as caught:
        world.router.choose(request)
    assert caught.value.code == "no-agent"
