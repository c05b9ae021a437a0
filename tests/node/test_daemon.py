"""Whole nodes as real processes on loopback, with the echo engine: forming a mesh, working, failing, coming back."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from mesh.certificates import Role
from mesh.wire import engine_pb2, facts_pb2, local_pb2, work_pb2
from node.client import NodeClient
from node.errors import ExitCode, KithError
from scripts.daemons import Daemon, formed, processes_of, until
from scripts.throwaway import ThrowawayMesh
from tests.conftest import DaemonFactory

pytestmark = pytest.mark.slow

DOCUMENT = "\n\n".join(
    f"# Part {part}\n\n"
    + " ".join(
        f"Sentence {number} of part {part} says that the river number {part * 100 + number} flows to the sea slowly."
        for number in range(1, 30)
    )
    for part in range(1, 9)
).encode()


def summarize() -> work_pb2.JobRequest:
    return work_pb2.JobRequest(
        summarize=work_pb2.SummarizeRequest(title="Rivers", media_type="text/markdown", sentences=5)
    )


def ask(question: str, panel: int = 1, options: tuple[str, ...] = ()) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(ask=work_pb2.AskRequest(question=question, panel=panel, options=options))


async def address_of(node: Daemon) -> str:
    status = await node.status()
    return f"{status.addresses[0].host}:{status.addresses[0].port}"


async def three(daemon: DaemonFactory, *arguments: str, pace: float = 200.0) -> list[Daemon]:
    """Three nodes that found each other by seeds, engines ready, with one leader in every view."""
    environment = {"KITH_ECHO_TOKENS_PER_S": str(pace)}
    first = daemon(*arguments, name="a", environment=environment)
    await first.ready()
    seed = await address_of(first)
    others = [daemon("--seed", seed, *arguments, name=name, environment=environment) for name in ("b", "c")]
    nodes = [first, *others]
    for node in nodes:
        await node.ready()

    async def formed() -> bool:
        seen = [await node.nodes() for node in nodes]
        leaders = {info.node_id for view in seen for info in view if info.leader}
        agents = [sum(len(info.profile.agents) for info in view) for view in seen]
        return len(leaders) == 1 and all(len(view) == 3 for view in seen) and agents == [3, 3, 3]

    await until(formed, 20.0, "three nodes with one leader and all profiles")
    return nodes


async def leader_among(nodes: list[Daemon]) -> Daemon:
    for node in nodes:
        if (await node.status()).role == "leader":
            return node
    raise AssertionError("nobody leads")


async def finished(client: NodeClient, job_id: bytes) -> local_pb2.JobSnapshot:
    last = local_pb2.JobSnapshot()
    async with asyncio.timeout(90):
        async for snapshot in client.watch(job_id):
            last = snapshot
    return last


async def test_one_node_alone_leads_answers_and_explains(daemon: DaemonFactory) -> None:
    node = daemon()
    status = await node.ready()
    assert status.members_alive == 1
    async with node.client() as client:
        accepted = await client.submit(ask("How many legs has a spider?"))
        assert (accepted.replicas, accepted.replicas_wanted) == (1, 1)
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_COMPLETED
        result = await client.result(accepted.job_id)
        assert len(result.result.panel.ballots) == 1
        explained = await client.explain(accepted.job_id)
        [record] = explained.rounds[0].assigned.assignments
        assert record.agent.node_id == status.node_id
        assert sum(term.seconds for term in record.terms) == pytest.approx(record.cost_s)


async def test_three_nodes_finish_a_job_whose_leader_is_killed(daemon: DaemonFactory) -> None:
    nodes = await three(daemon, pace=60.0)
    leader = await leader_among(nodes)
    survivors = [node for node in nodes if node is not leader]
    async with survivors[0].client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)
        assert (accepted.replicas, accepted.replicas_wanted) == (3, 3)

        async def some_done() -> bool:
            [job] = await client.jobs()
            return job.tasks_total > 0 and job.tasks_done >= 2

        await until(some_done, 60.0, "two tasks done")
        leader.kill()
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_COMPLETED
        assert all(task.state == "done" for task in last.tasks)
        result = await client.result(accepted.job_id)
        story = (await client.story(accepted.job_id)).events
    summary = result.result.summary
    text = result.document.decode()
    assert 1 <= len(summary.summary.sentences) <= 5
    for sentence in summary.summary.sentences:
        assert sentence.sources
        assert all(0 <= span.begin < span.end <= len(text) for span in sentence.sources)
    kinds = [event.kind for event in story]
    assert (kinds[0], kinds[1], kinds[-1]) == ("job_submitted", "job_planned", "job_completed")
    assert kinds.count("task_finished") >= last.tasks_total
    assert {event.node_name for event in story} == {"a", "b", "c"}, "facts of every author, the dead one's too"
    assert any(f"under {leader.name} in" in event.text for event in story)
    # The other survivor reads the same, and the killed one too when it is back, from its own journal and its peers.
    leader.start()
    for node in (survivors[1], leader):
        await node.ready()
        async with node.client() as other:

            async def same(other: NodeClient = other) -> bool:
                return (await other.result(accepted.job_id)).result == result.result

            await until(same, 20.0, "the same result")


async def test_the_same_key_and_request_is_the_same_job_on_any_node(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    ids = set()
    for node in nodes[:2]:
        async with node.client() as client:
            ids.add((await client.submit(ask("Which?"), client_key=b"k" * 16)).job_id)
            last = await finished(client, next(iter(ids)))
            assert last.state == local_pb2.JOB_STATE_COMPLETED
            assert len(await client.jobs()) == 1
    assert len(ids) == 1


async def test_a_panel_sits_on_distinct_agents_and_may_not_be_larger_than_they_are(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    async with nodes[1].client() as client:
        with pytest.raises(KithError, match="a panel of 4 needs 4 agents that write; only 3 here") as caught:
            await client.submit(ask("Which?", panel=4))
        assert caught.value.exit_code == ExitCode.UNAVAILABLE
        accepted = await client.submit(ask("Which?", panel=3, options=("red", "green")))
        await finished(client, accepted.job_id)
        panel = (await client.result(accepted.job_id)).result.panel
    assert len({ballot.agent.node_id for ballot in panel.ballots}) == 3
    assert panel.correlated, "three agents of one model"
    assert all(sum(ballot.probabilities) == pytest.approx(1.0) for ballot in panel.ballots)


async def test_a_cancelled_job_stops_its_tasks_and_says_so(daemon: DaemonFactory) -> None:
    node = daemon(environment={"KITH_ECHO_TOKENS_PER_S": "5"})
    await node.ready()
    async with node.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)

        async def busy() -> bool:
            load = (await node.status()).load
            return load.slots_busy > 0 and [one.agent for one in load.agents if one.requests] == ["default"]

        await until(busy, 30.0, "a task runs, and is told of the agent that has it")
        assert await client.cancel(accepted.job_id, "not needed") == "requested"
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_CANCELLED
        assert [reason.message for reason in last.reasons] == ["not needed"]

        async def idle() -> bool:
            load = (await node.status()).load
            return load.slots_busy == 0 and not load.agents

        await until(idle, 10.0, "no task runs")
        with pytest.raises(KithError, match="was cancelled: not needed"):
            await client.result(accepted.job_id)
        assert await client.cancel(accepted.job_id) == "already-ended"


async def test_a_job_outlives_a_killed_engine_even_on_one_node(daemon: DaemonFactory) -> None:
    node = daemon(environment={"KITH_ECHO_TOKENS_PER_S": "30"})
    await node.ready()
    async with node.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)

        async def one_done() -> bool:
            [job] = await client.jobs()
            return job.tasks_done >= 1

        await until(one_done, 30.0, "a task done")
        [engine] = [pid for pid, command in processes_of(node.data_dir).items() if "node.engine.child" in command]
        os.kill(engine, signal.SIGKILL)
        last = await finished(client, accepted.job_id)
        assert last.state == local_pb2.JOB_STATE_COMPLETED, last.reasons
        assert max(task.attempts for task in last.tasks) >= 2, "what ran in the killed engine ran again"


@pytest.mark.parametrize(
    ("request_", "document", "code"),
    [
        (summarize(), b"", "bad-document"),
        (summarize(), b"\xff\xfe\xfa", "bad-document"),
        (ask("   "), b"", "bad-request"),
        (ask("Which?", options=("one",)), b"", "bad-options"),
        (ask("Which?", options=("one", "one")), b"", "bad-options"),
        (ask("x" * 20_000), b"", "bad-request"),
        (work_pb2.JobRequest(), b"", "bad-request"),
    ],
)
async def test_bad_submissions_are_refused_and_leave_no_job(
    daemon: DaemonFactory, request_: work_pb2.JobRequest, document: bytes, code: str
) -> None:
    node = daemon()
    await node.ready()
    async with node.client() as client:
        with pytest.raises(KithError) as caught:
            await client.submit(request_, document)
        assert caught.value.code == code
        assert caught.value.remedy
        assert await client.jobs() == []


async def test_unknown_jobs_are_said_to_be_unknown(daemon: DaemonFactory) -> None:
    node = daemon()
    await node.ready()
    async with node.client() as client:
        for call in (client.result, client.cancel, client.explain):
            with pytest.raises(KithError) as caught:
                await call(b"\1" * 32)
            assert (caught.value.code, caught.value.exit_code) == ("job-unknown", ExitCode.NOT_FOUND)


async def test_knowledge_reaches_every_node_and_survives_a_restart(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    async with nodes[0].client() as client:
        item = facts_pb2.KnowledgeAdded(title="仓库", text="备用钥匙在门口的花盆下面。", tags=["keys"])
        item_id = await client.add_knowledge(item)

    async def found(node: Daemon) -> bool:
        async with node.client() as other:
            hits = await other.search_knowledge("钥匙在哪里")
            return [hit.item_id for hit in hits] == [item_id] and hits[0].author_name == "a"

    for node in nodes:
        await until(lambda node=node: found(node), 10.0, "the item is found")  # type: ignore[misc]
    for node in nodes:
        node.end()
    nodes[2].start()
    await nodes[2].ready()
    assert await found(nodes[2])


async def test_chat_goes_to_the_node_that_was_named(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    message = engine_pb2.ChatMessage(role="user", content="The heron stands. It waits.")
    async with nodes[0].client() as client:
        text, routed = "", ""
        request = local_pb2.ChatRequest(request=engine_pb2.GenerateRequest(messages=[message]), node="c")
        async for event in client.chat(request):
            routed = event.routed.node_name or routed
            text += event.generate.delta.text
        assert routed == "c"
        assert "heron" in text
        request.node = "nobody"
        with pytest.raises(KithError) as caught:
            async for _ in client.chat(request):
                pass
        assert caught.value.code == "node-unknown"


async def test_a_second_daemon_a_taken_port_and_a_foreign_journal_are_refused(
    daemon: DaemonFactory, tmp_path: Path
) -> None:
    node = daemon(name="first")
    await node.ready()
    taken = await address_of(node)
    options = ["--engine", "echo", "--no-mdns"]
    twin = Daemon(node.data_dir, options, name="twin")
    other = Daemon(tmp_path / "other", [*options, "--listen", taken], name="other", mesh=ThrowawayMesh())
    abroad = Daemon(tmp_path / "abroad", [*options, "--listen", "192.0.2.1:0"], name="abroad")
    for started, words in ((twin, "runs already under"), (other, "is taken"), (abroad, "this node is in no mesh")):
        started.start()
        assert started.process is not None
        assert await asyncio.to_thread(started.process.wait, 20) == ExitCode.CANNOT_START
        said = started.output.read_text()
        assert words in said
        assert "Traceback" not in said
    node.end()
    (node.data_dir / "node.key").unlink()
    shutil.rmtree(node.data_dir / "mesh")
    node.start()  # enrolled anew, with another key
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 20) == ExitCode.CANNOT_START
    assert "belongs to node" in node.output.read_text()


@pytest.mark.parametrize("content", [None, b"", b"no model", b"GGUF\x03\x00\x00\x00\x07"])
async def test_a_model_that_can_not_be_used_ends_the_start(tmp_path: Path, content: bytes | None) -> None:
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    node = Daemon(tmp_path / "node", ["--engine", "llama", "--model", str(model), "--no-mdns"], name="node")
    node.start()
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 20) == ExitCode.BAD_INPUT
    said = node.output.read_text().splitlines()
    assert len(said) == 2
    assert "model.gguf" in said[0]
    assert "→" in said[1]
    node.end()


async def test_a_copied_data_directory_is_noticed(daemon: DaemonFactory, tmp_path: Path) -> None:
    first = daemon(name="first")
    await first.ready()
    seed = await address_of(first)
    first.end()
    shutil.copytree(first.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("run", "logs", "port"))
    first.start()
    await first.ready()
    copy = daemon("--seed", seed, name="copy")
    await copy.ready()

    async def noticed() -> bool:
        return "copy of this data directory" in (copy.data_dir / "logs" / "kith.log").read_text()

    await until(noticed, 10.0, "the copy is noticed")


@pytest.mark.parametrize("gone", ["removed", "moved", "made anew"])
async def test_a_node_whose_data_directory_goes_away_ends(gone: str, daemon: DaemonFactory, tmp_path: Path) -> None:
    """It would go on for ever: nobody could speak to it, and it would promise to keep what is on no disk."""
    node = daemon(alone=True)
    await node.ready()
    aside = tmp_path / "aside"
    node.data_dir.rename(aside)
    if gone == "removed":
        shutil.rmtree(aside)
    elif gone == "made anew":
        (node.data_dir / "run").mkdir(parents=True)
        (node.data_dir / "run" / "kith.pid").write_text("")
    assert node.process is not None
    assert await asyncio.to_thread(node.process.wait, 60) == ExitCode.FAILED
    assert "deleted, moved or replaced while the node ran" in node.output.read_text()


async def test_a_node_in_no_mesh_works_alone_and_is_seen_by_nobody(daemon: DaemonFactory) -> None:
    first = daemon(name="first")
    await first.ready()
    alone = daemon("--seed", await address_of(first), name="alone", alone=True)
    status = await alone.ready()
    assert (list(status.addresses), status.mdns, status.members_alive) == ([], False, 1)
    assert not (alone.data_dir / "port").exists()
    assert {connection.laddr.port for connection in psutil.Process(alone.pid).net_connections("inet")} == set()
    async with alone.client() as client:
        accepted = await client.submit(ask("How many legs has a spider?"))
        assert (await finished(client, accepted.job_id)).state == local_pb2.JOB_STATE_COMPLETED
    said = alone.output.read_text() + (alone.data_dir / "logs" / "kith.log").read_text()
    assert "kith init" in said
    assert "--seed is not looked at" in said
    assert len(await first.nodes()) == 1


async def test_a_worker_works_but_neither_leads_nor_submits_nor_teaches(daemon: DaemonFactory, tmp_path: Path) -> None:
    node = daemon(name="node")
    await node.ready()
    assert node.mesh is not None
    node.mesh.enrol(tmp_path / "worker", Role.WORKER)
    worker = daemon("--seed", await address_of(node), name="worker")
    await worker.ready()
    assert await formed([node, worker]) is node
    async with worker.client() as client:
        for call in (client.submit(ask("Which?")), client.add_knowledge(facts_pb2.KnowledgeAdded(text="All."))):
            with pytest.raises(KithError) as caught:
                await call
            assert caught.value.code == "role-refused"
    async with node.client() as client:
        accepted = await client.submit(summarize(), DOCUMENT)
        last = await finished(client, accepted.job_id)
    assert last.state == local_pb2.JOB_STATE_COMPLETED
    assert {task.node_name for task in last.tasks} == {"node", "worker"}
    node.kill()

    async def nobody_leads() -> bool:
        now = await worker.status()
        return now.members_alive == 1 and not now.leader.leader_id

    await until(nobody_leads, 20.0, "the worker knows that the leader is gone")
    assert (await worker.status()).role != "leader"


async def test_two_meshes_at_one_address_book_stay_apart(daemon: DaemonFactory, tmp_path: Path) -> None:
    ours = daemon(name="ours")
    await ours.ready()
    ThrowawayMesh().enrol(tmp_path / "theirs")
    theirs = daemon("--seed", await address_of(ours), name="theirs", alone=True)
    await theirs.ready()
    log = theirs.data_dir / "logs" / "kith.log"

    async def said() -> bool:
        return "does not belong to this mesh" in log.read_text()

    await until(said, 10.0, "the refusal is logged")
    assert (len(await ours.nodes()), len(await theirs.nodes())) == (1, 1)


async def test_a_stopped_leader_hands_over_and_says_goodbye(daemon: DaemonFactory) -> None:
    nodes = await three(daemon)
    leader = await leader_among(nodes)
    name = leader.name
    leader.send(signal.SIGTERM)
    rest = [node for node in nodes if node is not leader]

    async def taken_over() -> bool:
        seen = [await node.nodes() for node in rest]
        left = all(any(info.name == name and info.state == 4 for info in view) for view in seen)
        return left and len({info.node_id for view in seen for info in view if info.leader}) == 1

    await until(taken_over, 10.0, "the leader left and another leads")


async def test_the_http_door_speaks_to_openai_clients_and_to_nobody_else(daemon: DaemonFactory) -> None:
    node = daemon("--http", "127.0.0.1:0")
    status = await node.ready()
    body: dict[str, Any] = {"model": "kith", "messages": [{"role": "user", "content": "Two herons wait. They see."}]}
    async with httpx2.AsyncClient(base_url=f"http://{status.http_address}", trust_env=False) as http:
        assert (await http.get("/health")).json()["engine"] == "ready"
        names = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        assert names == ["kith", "kith/panel", status.agent.model]
        whole = (await http.post("/v1/chat/completions", json=body)).json()
        text = whole["choices"][0]["message"]["content"]
        assert "herons" in text
        assert whole["usage"]["total_tokens"] > whole["usage"]["prompt_tokens"] > 0
        streamed = await http.post(
            "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
        )
        lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == text
        assert chunks[-1]["usage"] == whole["usage"]
        assert (await http.get("/health", headers={"Host": "evil.example"})).status_code == 421
        bad: list[tuple[Any, int]] = [
            (body | {"messages": []}, 400),
            (body | {"temperature": "hot"}, 400),
            (body | {"model": "nope"}, 404),
            ([], 400),
        ]
        for payload, code in bad:
            answer = await http.post("/v1/chat/completions", json=payload)
            assert answer.status_code == code
            assert answer.json()["error"]["message"]
        as_form = await http.post(
            "/v1/chat/completions", content=json.dumps(body), headers={"content-type": "text/plain"}
        )
        assert as_form.status_code == 400
