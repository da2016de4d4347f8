"""A statement on SQLite is one message to the driver's thread, and nothing of one is left open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import aiosqlite
import pytest
from sqlalchemy import delete, insert, select

from tokensvc.store import open_engine, upgrade
from tokensvc.store.database_file import DatabaseFile
from tokensvc.store.tables import leases
from tokensvc.store.turns import connect_in_turns

ROWS = [
    {"name": f"n{number}", "holder": "somebody", "fence": number, "expires_at": 1.5}
    for number in range(300)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


async def test_a_look_up_is_one_turn_and_a_transaction_one_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        assert (await connection.execute(select(leases))).all() == []
    turns = 0
    execute = aiosqlite.Connection._execute

    async def count(*given: object) -> object:
        nonlocal turns
        turns += 1
        return await execute(*given)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(aiosqlite.Connection, "_execute", count)
    async with engine.begin() as connection:
        assert (await connection.execute(insert(leases), ROWS)).rowcount == len(ROWS)
    assert turns == 2
    async with engine.connect() as connection:
        found = (await connection.execute(select(leases).order_by(leases.c.fence))).all()
        assert [row._asdict() for row in found] == ROWS
    assert turns == 3
    async with engine.connect() as connection:
        some = delete(leases).where(leases.c.fence < 10).returning(leases.c.name)
        gone = await connection.execute(some)
        assert len(gone.all()) == 10
    # It was not committed, so it is undone.
    assert turns == 5
    async with engine.connect() as connection:
        assert len((await connection.execute(select(leases.c.name))).all()) == len(ROWS)
    await engine.dispose()


async def test_what_is_read_holds_up_nobody_once_it_is_read(path: Path):
    connection = await connect_in_turns(partial(DatabaseFile(path).connect, lock_seconds=0.01))
    cursor = connection.cursor()
    await cursor.execute("SELECT 1 UNION SELECT 2")
    with closing(sqlite3.connect(path)) as other:
        # Which nobody may do who is not alone.
        assert other.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
        assert other.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    assert await cursor.fetchall() == [(1,), (2,)]
    await connection.close()


async def test_what_goes_on_after_nobody_waits_for_it_is_undone_as_well(path: Path):
    connection = await connect_in_turns(partial(DatabaseFile(path).connect, lock_seconds=0.01))
    begun, goes_on = threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        goes_on.wait()
        return "slow"

    await connection.create_function("hold", 0, hold)
    steps = [
        asyncio.create_task(connection.cursor().execute(statement))
        for statement in ("SELECT hold()", "INSERT INTO leases VALUES ('n', 'x', 1, 1.0)")
    ]
    await asyncio.to_thread(begun.wait)
    for step in steps:
        step.cancel()
    await asyncio.wait(steps)
    # The transaction is not even begun.
    assert not connection.in_transaction
    undone = asyncio.create_task(connection.rollback())
    await asyncio.sleep(0)
    goes_on.set()
    await undone
    await connection.cursor().execute("SELECT 1")
    assert not connection.in_transaction
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM leases").fetchone() == (0,)
    await connection.close()


async def test_one_text_that_is_damaged_hides_no_other_row(tmp_path: Path) -> None:
    path = str(tmp_path / "t.db")
    connection = await connect_in_turns(partial(sqlite3.connect, path, check_same_thread=False))
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE t (name TEXT)")
    await cursor.execute("INSERT INTO t VALUES ('a'), (CAST(x'6261e36b' AS TEXT)), ('c')")
    await connection.commit()
    await cursor.execute("SELECT name FROM t ORDER BY rowid")
    assert [row[0] for row in await cursor.fetchall()] == ["a", "ba\N{REPLACEMENT CHARACTER}k", "c"]
    await connection.close()
