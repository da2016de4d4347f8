"""Databases that are really locked, full, read-only, damaged or gone, and what is said of them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.store.support import url_of
from tokensvc.errors import StoreUnavailableError
from tokensvc.store import engine as engine_module
from tokensvc.store import open_engine, store_faults, upgrade

SECRET = "a-sealed-key-that-must-not-show"
WRITE = text("INSERT INTO feeds (name, version) VALUES (:name, 1)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "tokensvc.db"
    path.parent.mkdir()
    upgrade(url_of(path))
    return path


async def attempt(engine: AsyncEngine, read: str | None) -> None:
    with store_faults("try it"):
        async with engine.begin() as connection:
            if read is not None:
                (await connection.exec_driver_sql(read)).all()
            else:
                await connection.execute(WRITE, {"name": SECRET})


async def threads_end() -> None:
    """Wait for the threads of connections that failed to open, which nobody else waits for.

    They report to the event loop, and would complain of one that is closed.
    """
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


async def fault_of(engine: AsyncEngine, *, read: str | None = None) -> StoreUnavailableError:
    """Do one piece of work that fails; return the error, having looked that it tells no secret."""
    with pytest.raises(StoreUnavailableError) as caught:
        await attempt(engine, read)
    await engine.dispose()
    await threads_end()
    error = caught.value
    assert error.context["operation"] == "try it"
    assert SECRET not in f"{error!r}{error.context}{error.__cause__}"
    return error


def pragma(engine: AsyncEngine, statement: str) -> None:
    """Run `statement` on each new connection, after ours."""

    def run(connection, _entry):
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    event.listen(engine.sync_engine, "connect", run)


async def test_locked(path, monkeypatch):
    monkeypatch.setattr(engine_module, "LOCK_TIMEOUT_SECONDS", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        error = await fault_of(open_engine(url_of(path)))
    assert error.detail == "The database is locked by another process."


async def test_a_lock_that_is_released_in_time_is_no_fault(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")
        engine = open_engine(url_of(path))
        with store_faults("try it"):
            async with engine.begin() as connection:
                await connection.execute(WRITE, {"name": "x"})
        await engine.dispose()


async def test_readers_do_not_wait_for_a_writer(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE feeds SET version = 99")
        engine = open_engine(url_of(path))
        async with engine.connect() as connection:
            version = (await connection.execute(text("SELECT version FROM feeds"))).scalar()
        await engine.dispose()
    assert version == 0


async def test_a_read_that_would_go_on_to_write_what_has_changed(path):
    # SQLITE_BUSY_SNAPSHOT, an extended code: why transactions here write first and read afterwards.
    engine = open_engine(url_of(path))
    async with engine.connect() as connection:
        await connection.exec_driver_sql("BEGIN")
        await connection.execute(text("SELECT version FROM feeds"))
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE feeds SET version = 99")
            other.commit()
        with (
            pytest.raises(StoreUnavailableError, match="locked by another"),
            store_faults("try it"),
        ):
            await connection.execute(WRITE, {"name": SECRET})
    await engine.dispose()


async def test_read_only(path):
    engine = open_engine(url_of(path))
    pragma(engine, "PRAGMA query_only=ON")
    assert (await fault_of(engine)).detail == "The database is read-only."


async def test_full(path):
    engine = open_engine(url_of(path))
    pragma(engine, "PRAGMA max_page_count=1")
    with closing(sqlite3.connect(path)) as other:
        # No page of the table has room left, so the next row needs one more than there may be.
        other.executemany(
            "INSERT INTO feeds VALUES (?, 1)", ((f"{n:04}{'x' * 60}",) for n in range(400))
        )
        other.commit()
    error = await fault_of(
        engine, read="INSERT INTO feeds SELECT name || 'y', 1 FROM feeds RETURNING 1"
    )
    assert error.detail == "The disk that holds the database is full."


async def test_damaged(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_size = other.execute("PRAGMA page_size").fetchone()[0]
        root = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'feeds'").fetchone()[
            0
        ]
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(b"\xff" * page_size)
    error = await fault_of(open_engine(url_of(path)), read="SELECT * FROM feeds")
    assert error.detail == "The database is damaged."


async def test_not_a_database(path):
    path.write_bytes(b"anything else " * 1000)
    error = await fault_of(open_engine(url_of(path)))
    assert error.detail == "The database file is not a database."


async def test_gone(path):
    engine = open_engine(url_of(path))
    shutil.rmtree(path.parent)
    assert (await fault_of(engine)).detail == "The database file cannot be opened."


async def test_a_statement_that_the_schema_does_not_know(path):
    engine = open_engine(url_of(path))
    error = await fault_of(engine, read="SELECT * FROM nowhere")
    assert error.detail == "The database refuses the statement."


async def test_all_connections_busy(path, monkeypatch):
    monkeypatch.setattr(engine_module, "POOL_SIZE", 1)
    monkeypatch.setattr(engine_module, "POOL_TIMEOUT_SECONDS", 0.01)
    engine = open_engine(url_of(path))
    async with engine.connect():
        with pytest.raises(StoreUnavailableError, match="All database connections are busy"):
            await attempt(engine, read="SELECT 1")
    await attempt(engine, read="SELECT 1")
    await engine.dispose()


def test_what_is_not_the_databases_doing_passes_through():
    def divide() -> None:
        raise ZeroDivisionError

    def ask() -> None:
        raise ArgumentError("a bug in a statement")

    def work(call: Callable[[], None]) -> None:
        with store_faults("try it"):
            call()

    with pytest.raises(ZeroDivisionError):
        work(divide)
    with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
        work(ask)
    assert caught.value.context == {"operation": "try it", "error": "ArgumentError"}
