"""A job's story for people: the facts that touched it, read from the store, with nodes called by their names."""

from collections.abc import Callable, Iterable

from mesh.facts import Fact, FactRange, parse
from mesh.identity import NodeId
from mesh.ledger import Job
from mesh.story import places_of, story
from mesh.wire import local_pb2
from node.store import Store

#: Facts of one job that are told: a job of 10,000 tasks has more, and nobody reads them all.
FACTS_MAX = 20_000


async def story_of(
    job: Job, store: Store, nodes: Iterable[NodeId], name_of: Callable[[str], str]
) -> list[local_pb2.StoryEvent]:
    """Causes before effects. `nodes`: whose ids are replaced by `name_of` them."""
    names = {node_id[:8]: name_of(node_id) for node_id in nodes}
    told = []
    for event in story(job.job_id, await _facts_of(job, store)):
        text = event.text
        for short, name in names.items():
            text = text.replace(f"{short}/default", name).replace(short, name)
        told.append(
            local_pb2.StoryEvent(
                time_ms=event.time_ms,
                node_id=event.author,
                node_name=name_of(event.author),
                kind=event.kind,
                text=text,
                fact_hash=event.fact_hash,
            )
        )
    return told


async def _facts_of(job: Job, store: Store) -> list[Fact]:
    facts: list[Fact] = []
    for wanted in places_of(job):
        first = wanted.first
        while first <= wanted.last and len(facts) < FACTS_MAX:
            signed = await store.read_ranges([FactRange(wanted.stream_id, first, wanted.last)])
            read = [parse(one) for one in signed if not one.HasField("retired")]
            if not read:
                break
            facts += read
            first = read[-1].sequence + 1
    return facts
