"""The journal's file: nobody else reads it, what is told to be durable is in it, and a full disk is said to be one."""

import os
import shutil
import sqlite3
from pathlib import Path

import apsw
import pytest

from node import schema
from node.errors import KithError
from node.store import Store
from tests.node.test_store import chain
from tests.node.working import KEY, no_fatal


def modes(folder: Path) -> dict[str, int]:
    return {part.name: part.stat().st_mode & 0o777 for part in folder.iterdir()}


@pytest.fixture(autouse=True)
def others_may_read_by_default() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def test_nobody_else_may_read_documents_and_answers(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    await store.put_blob(b"a letter")
    assert modes(tmp_path) == {"j": 0o600, "j-wal": 0o600, "j-shm": 0o600}
    await store.close()


async def test_what_an_earlier_release_left_open_to_others_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path / "j", no_fatal)
    store.open(KEY.node_id)
    sha256 = await store.put_blob(b"a letter")
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for part in ("j", "j-wal", "j-shm"):
        shutil.copyfile(tmp_path / part, crashed / part)  # a new file, open to others
    await store.close()
    assert set(modes(crashed).values()) == {0o644}
    again = Store(crashed / "j", no_fatal)
    again.open(KEY.node_id)
    assert modes(crashed) == {"j": 0o600, "j-wal": 0o600, "j-shm": 0o600}
    assert await again.get_blob(sha256) == b"a letter"
    await again.close()


@pytest.mark.parametrize("how", ["deleted", "moved", "another in its place"])
async def test_nothing_is_durable_in_a_folder_that_is_gone(tmp_path: Path, how: str) -> None:
    told: list[str] = []
    folder = tmp_path / "node"
    folder.mkdir()
    store = Store(folder / "j", told.append)
    store.open(KEY.node_id)
    await store.append(chain(1))
    if how == "deleted":
        shutil.rmtree(folder)
    else:
        folder.rename(tmp_path / "elsewhere")
    if how == "another in its place":
        folder.mkdir()
        sqlite3.connect(folder / "j").close()
        (folder / "j").write_bytes(b"")
    for ask in (store.append(chain(2)[1:]), store.put_blob(b"content"), store.size_bytes()):
        with pytest.raises(KithError) as caught:
            await ask
        assert caught.value.code == "journal-gone"
    assert told
    assert str(folder) in told[0]
    await store.close()
    if how == "moved":
        again = Store(tmp_path / "elsewhere" / "j", no_fatal)
        facts, _, _ = again.open(KEY.node_id)
        assert len(list(facts)) == 1, "what was promised before is there"
        await again.close()


@pytest.mark.parametrize("code", [apsw.SQLITE_FULL, apsw.SQLITE_IOERR_SHMSIZE])
async def test_a_disk_without_room_at_the_start_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """SQLite ends the transaction by itself, and apsw then says that there is none to roll back."""

    def full(db: apsw.Connection, *_: object) -> None:
        with db:
            try:
                raise apsw.exception_for(code)
            finally:
                raise apsw.SQLError("cannot rollback - no transaction is active")

    monkeypatch.setattr(schema, "prepare", full)
    store = Store(tmp_path / "j", no_fatal)
    with store.restoring(), pytest.raises(KithError) as caught:
        store.open(KEY.node_id)
    assert caught.value.code == "disk-full"
    assert "move" not in caught.value.remedy
    await store.close()
