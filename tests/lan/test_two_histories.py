"""One author, two facts in one place: found by the others, proved to everybody, and said to people.

A data directory alone does not do it, for each start writes as a new incarnation; a virtual machine that is copied
while it runs does. Here the node's own key signs another fact into the place of its last one, on its own disk.
"""

import shutil

import apsw
import pytest

from mesh.facts import Fact, make
from mesh.identity import NodeId
from mesh.wire import facts_pb2
from node.fact_rows import FactRows
from node.keys import load_or_make_key
from node.paths import NodePaths
from scripts.daemons import Daemon, formed, until
from scripts.workload import agreed, completed, submit, up
from tests.lan.commands import kith, said
from tests.lan.conftest import LanFactory

pytestmark = [pytest.mark.lan, pytest.mark.slow, pytest.mark.timeout(180)]


def rewrite_last_fact(node: Daemon) -> Fact:
    """On the disk of a node that is down: its last fact about jobs says another thing. Returns what it said."""
    paths = NodePaths(node.data_dir)
    key = load_or_make_key(paths.key)
    rows = FactRows()
    rows.db = apsw.Connection(str(paths.journal))
    own = [
        fact
        for fact in rows.all_facts()
        if fact.author == key.node_id and fact.stream_id.stream == facts_pb2.FACT_STREAM_JOBS
    ]
    last = max(own, key=lambda fact: (fact.hybrid_clock, fact.sequence))
    content = getattr(last.body, last.kind)
    content.token.term += 1
    other = make(
        key, last.stream_id.incarnation, last.sequence, last.predecessor, last.hybrid_clock, last.kind, content
    )
    assert other.hash != last.hash
    stream = last.stream_id
    changed = (
        "UPDATE facts SET body = ?, signature = ? WHERE author = ? AND incarnation = ? AND stream = ? AND sequence = ?"
    )
    place = (stream.author, f"{stream.incarnation:016x}", stream.stream, last.sequence)
    rows.db.execute(changed, (other.raw, other.signature, *place)).fetchall()
    assert rows.db.changes() == 1
    rows.db.close()
    return last


async def forked(node: Daemon) -> list[str]:
    return list((await node.status()).forked)


async def is_known_everywhere(everyone: list[Daemon], liar: NodeId) -> None:
    async def probe() -> bool:
        return all([await forked(one) == [liar] for one in everyone])

    await until(probe, 30.0, "everybody knows who wrote two histories")


async def test_two_facts_in_one_place_are_found_and_said_to_people(lan_of: LanFactory) -> None:
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    await up(everyone)
    liar, *others = everyone[2], *everyone[:2]
    liar_id = NodeId((await liar.status()).node_id)
    job = await submit(liar, pieces=6)
    await completed(others[0], job)
    before = (await agreed(everyone, [job])).results
    liar.kill()
    rewrite_last_fact(liar)
    assert [await forked(one) for one in others] == [[], []]
    liar.start()
    await up(everyone)
    await is_known_everywhere(everyone, liar_id)
    for one in everyone:
        status = kith(one, "status")
        assert f"{liar_id[:12]} wrote two histories" in status
        assert said(one, "status")["forked_node_ids"] == [liar_id]
        marked = {node["node_id"] for node in said(one, "nodes")["nodes"] if node["forked"]}
        assert marked == {liar_id}
    # All read the same, nothing that ended is lost, and the node goes on in a history of its own.
    assert (await agreed(everyone, [job])).results == before
    second = await submit(liar, 4, "river")
    await completed(others[1], second)
    await agreed(everyone, [job, second])
    # The proof outlives restarts of whoever holds it.
    for one in everyone:
        one.kill()
    lan.start()
    await up(everyone)
    await is_known_everywhere(everyone, liar_id)
    await agreed(everyone, [job, second])


async def test_a_restored_backup_is_no_fork(lan_of: LanFactory) -> None:
    """A data directory of a while ago: a new life of the same node, which gets its own facts back from the others."""
    lan = lan_of(3)
    everyone = list(lan.daemons.values())
    await up(everyone)
    restored = everyone[2]
    first = await submit(restored, pieces=3)
    await completed(restored, first)
    await agreed(everyone, [first])
    restored.end()
    backup = restored.data_dir.with_name("backup")
    shutil.copytree(restored.data_dir, backup)
    restored.start()
    await up(everyone)
    second = await submit(restored, 4, "river")
    await completed(restored, second)
    await agreed(everyone, [first, second])
    restored.kill()
    shutil.rmtree(restored.data_dir)
    backup.rename(restored.data_dir)
    restored.start()
    await up(everyone)
    third = await submit(restored, 3, "mountain")
    await completed(everyone[0], third)
    await agreed(everyone, [first, second, third])
    await formed(everyone)
    assert [await forked(one) for one in everyone] == [[], [], []]
