"""Three hosts on a LAN: they find each other by mDNS, work, lose their leader to SIGKILL, and finish the job."""

import asyncio
from collections.abc import Iterator

import pytest

from mesh.wire import local_pb2, work_pb2
from scripts.daemons import formed
from scripts.lan_hosts import Lan
from scripts.lan_network import why_not

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(240)]

#: Slow enough that the job still runs when its leader dies.
PACE = {"KITH_ECHO_TOKENS_PER_S": "40"}


@pytest.fixture
def lan() -> Iterator[Lan]:
    if problem := why_not():
        pytest.skip(f"{problem[0]}; {problem[1]}")
    with Lan.create(3, ["--engine", "echo"], environment=PACE) as made:
        made.start()
        yield made


def document() -> str:
    """About 4,000 words in sections; each sentence names its place, so that a source can be checked."""
    sections = []
    for chapter in range(1, 21):
        sentences = [
            f"House {number} of street {chapter} keeps {number * chapter} lamps, and its door has colour {number}."
            for number in range(1, 13)
        ]
        sections.append(f"# Street {chapter}\n\n" + " ".join(sentences))
    return "\n\n".join(sections)


async def test_job_outlives_its_leader(lan: Lan) -> None:
    everyone = list(lan.daemons.values())
    leader = await formed(everyone)
    others = [one for one in everyone if one is not leader]

    text = document()
    request = work_pb2.JobRequest(
        summarize=work_pb2.SummarizeRequest(title="Streets", media_type="text/markdown", sentences=4), seed=7
    )
    async with others[0].client() as client:
        accepted = await client.submit(request, text.encode())
    assert accepted.replicas == accepted.replicas_wanted == 3

    async with asyncio.timeout(60), others[0].client() as client:
        async for before in client.watch(accepted.job_id):
            assert before.state == local_pb2.JOB_STATE_OPEN, "the job ended before its leader could be killed"
            states = [task.state for task in before.tasks]
            if states.count("done") >= 2 and "running" in states:
                break
    assert before.tasks_total > before.tasks_done + 2
    old = (await leader.status()).leader
    leader.kill()

    async with asyncio.timeout(120), others[0].client() as client:
        after = [one async for one in client.watch(accepted.job_id)][-1]
    assert after.state == local_pb2.JOB_STATE_COMPLETED, list(after.reasons)
    assert after.tasks_done == after.tasks_total == before.tasks_total
    assert [task.state for task in after.tasks] == ["done"] * after.tasks_total

    new = await formed(others)
    now = (await new.status()).leader
    assert (now.term, now.leader_id) > (old.term, old.leader_id)
    assert new in others

    # Both survivors hold the same answer, every sentence with a place in the document that was handed in.
    results = []
    for one in others:
        async with one.client() as client:
            results.append(await client.result(accepted.job_id))
    assert results[0].result == results[1].result
    assert results[0].document.decode() == text
    sentences = results[0].result.summary.summary.sentences
    assert 1 <= len(sentences) <= 4
    for sentence in sentences:
        assert all(0 <= span.begin < span.end <= len(text) for span in sentence.sources)
        assert sentence.sources
