"""Tests of kithmesh.py: the page for programs, against a known node, and without one."""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kithmesh
from kithmesh import Client, KithError, LLMAgent, assign
from node.client import NodeClient
from tests.node.cli.local_node import PANEL, SPLIT, LocalNode, serve


@pytest.fixture
def local_node(tmp_path: Path) -> Iterator[LocalNode]:
    node = LocalNode()
    server = serve(tmp_path, node)
    yield node
    server.stop(0).wait()


def test_import_loads_nothing_heavy() -> None:
    heavy = ("grpc", "google.protobuf", "asyncio", "numpy", "cvxpy", "rich", "typer")
    code = f"import sys, kithmesh; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_is_described() -> None:
    for name in kithmesh.__all__:
        assert inspect.getdoc(getattr(kithmesh, name)), name


def test_nodes(local_node: LocalNode, tmp_path: Path) -> None:
    with Client(tmp_path) as mesh:
        nodes = mesh.nodes()
    assert [(node.name[:5], node.state, node.leader) for node in nodes] == [
        ("anna", "alive", True),
        ("ben", "alive", False),
        ("clara", "suspect", False),
    ]
    assert nodes[0].models == ("SmolLM2-135M-Instruct",)


def test_ask_gives_answer_ballots_and_minority(local_node: LocalNode, tmp_path: Path) -> None:
    with Client(tmp_path) as mesh:
        local_node.next_job = PANEL
        verdict = mesh.ask("Which?", panel=3, options=["Jupiter", "Saturn"], seed=5)
        assert (verdict.answer, verdict.votes_for, verdict.correlated) == ("Jupiter", 2, True)
        assert [ballot.answer for ballot in verdict.minority] == ["Saturn"]
        assert local_node.submitted[0][0].request.seed == 5
        local_node.next_job = SPLIT
        assert mesh.ask("Which?", panel=2).answer is None


def test_summarize_gives_sentences_with_their_sources(local_node: LocalNode, tmp_path: Path) -> None:
    document = tmp_path / "rivers.txt"
    document.write_text("The Rhine rises in the Alps. It ends in the North Sea.\n", encoding="utf-8")
    with Client(tmp_path) as mesh:
        summary = mesh.summarize(document)
    assert summary.text.startswith("The Rhine rises in the Alps. It flows")
    assert summary.sentences[0].sources == ("The Rhine rises in the Alps.",)
    assert summary.sentences[0].verbatim


def test_failed_job_and_bad_document_are_errors(local_node: LocalNode, tmp_path: Path) -> None:
    with Client(tmp_path) as mesh:
        local_node.next_job = b"\xc1" * 32
        with pytest.raises(KithError) as caught:
            mesh.ask("Which?")
        assert caught.value.code == "job-failed"
        with pytest.raises(KithError) as caught:
            mesh.summarize(tmp_path / "none.txt")
        assert caught.value.code == "bad-document"


def test_knowledge_goes_round(local_node: LocalNode, tmp_path: Path) -> None:
    with Client(tmp_path) as mesh:
        item_id = mesh.add_knowledge("The router is in room 4.", title="Router", tags=["it"])
        assert [hit.item_id for hit in mesh.search("router")] == [item_id]


def test_agent_keeps_its_dialogue(local_node: LocalNode, tmp_path: Path) -> None:
    with LLMAgent(tmp_path, node="ben", system="Be brief.") as agent:
        assert agent.process_instruction("one") == "You said: one"
        assert agent.process_instruction("two") == "You said: two"
        assert agent.generate("alone") == "You said: alone"
        assert [text for _, text in agent.dialogue()] == ["Be brief.", "one", "You said: one", "two", "You said: two"]
    sent = [[message.content for message in request.request.messages] for request in local_node.asked]
    assert sent[1] == ["Be brief.", "one", "You said: one", "two"]
    assert sent[2] == ["Be brief.", "alone"]
    assert {request.node for request in local_node.asked} == {"ben"}


def test_agent_forgets_a_question_that_failed(local_node: LocalNode, tmp_path: Path) -> None:
    with LLMAgent(tmp_path) as agent:
        local_node.chat_problem = KithError("busy", "all slots are taken", "try again")
        with pytest.raises(KithError, match="all slots"):
            agent.process_instruction("one")
        local_node.chat_problem = None
        assert agent.process_instruction("two") == "You said: two"
        assert [text for _, text in agent.dialogue()] == ["two", "You said: two"]


def test_agent_retrieves_shared_knowledge(local_node: LocalNode, tmp_path: Path) -> None:
    with LLMAgent(tmp_path) as agent:
        agent.client.add_knowledge("The router is in room 4.")
        assert [hit.text for hit in agent.retrieve("router")] == ["The router is in room 4."]


def test_no_node_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with Client(tmp_path) as mesh, pytest.raises(KithError) as caught:
        mesh.nodes()
    assert caught.value.code == "node-unreachable"
    assert caught.value.remedy.endswith("up")


def test_client_can_be_used_again_after_close(local_node: LocalNode, tmp_path: Path) -> None:
    mesh = Client(tmp_path)
    assert len(mesh.nodes()) == 3
    mesh.close()
    assert len(mesh.nodes()) == 3
    mesh.close()
    mesh.close()


async def test_it_works_where_an_event_loop_runs(local_node: LocalNode, tmp_path: Path) -> None:
    """As in a notebook. It blocks that loop, and does not need it."""
    with Client(tmp_path) as mesh:
        assert len(mesh.nodes()) == 3
        assert len(await asyncio.to_thread(mesh.nodes)) == 3


def test_a_client_may_be_shared_by_threads(local_node: LocalNode, tmp_path: Path) -> None:
    with Client(tmp_path) as mesh, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: len(mesh.nodes()), range(32)))
    assert found == [3] * 32


def test_a_program_that_closes_nothing_ends_well(local_node: LocalNode, tmp_path: Path) -> None:
    code = f"from kithmesh import Client; print(len(Client({str(tmp_path)!r}).nodes()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_ctrl_c_ends_the_wait_and_the_client_stays_of_use(local_node: LocalNode, tmp_path: Path) -> None:
    begun = threading.Event()

    async def never(node: NodeClient) -> None:
        begun.set()
        await asyncio.Event().wait()

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    with Client(tmp_path) as mesh:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            mesh._run(never)
        assert len(mesh.nodes()) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda mesh: mesh.chat([{"role": "user", "content": "hi"}]),
        lambda mesh: mesh.chat([("wizard", "hi")]),
        lambda mesh: mesh.chat("hi"),
        lambda mesh: mesh.ask("Which?", options="yes,no"),
        lambda mesh: mesh.add_knowledge("text", tags="house"),
    ],
)
def test_what_would_silently_mean_something_else_is_refused(
    call: Callable[[Client], object], local_node: LocalNode, tmp_path: Path
) -> None:
    with Client(tmp_path) as mesh, pytest.raises(KithError) as caught:
        call(mesh)
    assert caught.value.code == "bad-request"
    assert caught.value.remedy.startswith("As in: ")
    assert local_node.asked == []
    assert local_node.submitted == []


async def test_the_client_for_asyncio_takes_a_path_as_text(local_node: LocalNode, tmp_path: Path) -> None:
    async with NodeClient(str(tmp_path)) as node:
        assert len(await node.nodes()) == 3


def test_assign_writes_nothing_to_its_callers_output() -> None:
    """Neither do the libraries under it, which have file descriptors of their own."""
    done = subprocess.run(
        [sys.executable, "-c", "from kithmesh import assign; assign([[4, 1], [2, 0]])"], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_assign_is_the_cheapest_assignment() -> None:
    assert assign([[4, 1, 3], [2, 0, 5], [3, 2, 2]]) == [1, 0, 2]
    with pytest.raises(ValueError, match="infeasible"):
        assign([[1.0], [1.0]])
