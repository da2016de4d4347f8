"""A database file that is moved away, replaced or deleted under a running service takes no row along."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.ledger.support import NOW, row
from tokensvc.errors import StoreUnavailableError
from tokensvc.ledger import LedgerWriter
from tokensvc.store import open_engine, upgrade
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import issued_tokens
from tokensvc.store.transactions import open_transactions


@pytest.fixture(params=["tokensvc.db", "what?mode=memory.db", "a #b%41'c \N{SNOWMAN}.db"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[AsyncEngine]:
    # As SQLAlchemy's URL has it; `?` begins its query.
    url = f"sqlite+aiosqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"
    upgrade(url)
    engine = open_engine(url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def writer(engine: AsyncEngine) -> AsyncIterator[LedgerWriter]:
    transactions = open_transactions(engine)
    writer = LedgerWriter(transactions, clock=lambda: NOW)
    writer.start()
    yield writer
    await writer.aclose()
    await transactions.aclose()


def recorded(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT token_id FROM issued_tokens ORDER BY token_id")
        return [name for (name,) in found]


async def test_what_is_recorded_is_in_the_file_of_that_name(
    path: Path, engine: AsyncEngine, writer: LedgerWriter
):
    await writer.record([row("p1")])
    assert recorded(path) == ["p1"]
    async with engine.connect() as connection:
        assert (await connection.execute(select(issued_tokens.c.token_id))).scalars().all() == [
            "p1"
        ]
    assert {file.name for file in path.parent.iterdir()} <= {
        path.name + suffix for suffix in ("", "-wal", "-shm")
    }


def gone(path: Path) -> Path:
    return path.with_name("gone.db")


def take_away(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
        return
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    path.rename(gone(path))
    if how == "replaced":
        copy.rename(path)


def put_back(path: Path) -> None:
    path.unlink(missing_ok=True)
    gone(path).rename(path)


def is_there(path: Path) -> bool:
    return path.exists()


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
async def test_nothing_is_recorded_in_a_file_that_is_gone(
    path: Path, writer: LedgerWriter, how: str
):
    await writer.record([row("p1")])
    take_away(path, how)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="moved, replaced or deleted"):
            await writer.record([row("p2")])
    assert is_there(path) is (how == "replaced"), "a database that is missing is not made anew"
    if how == "moved":
        put_back(path)
        await writer.record([row("p3")])
        assert recorded(path) == ["p1", "p3"]


@pytest.mark.parametrize("how", ["moved", "replaced"])
async def test_who_is_in_a_commit_while_the_file_goes_is_not_told_that_it_is_recorded(
    path: Path, engine: AsyncEngine, how: str
):
    transactions = open_transactions(engine)
    with pytest.raises(StoreUnavailableError, match="moved, replaced or deleted"):
        await transactions.run("take away", lambda _: take_away(path, how))
    await transactions.aclose()


async def test_who_reads_gets_no_other_file_and_makes_none(path: Path, engine: AsyncEngine):
    async def read() -> None:
        with store_faults("read"):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

    take_away(path, "moved")
    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        await read()
    assert not is_there(path)
    put_back(path)
    take_away(path, "replaced")
    with pytest.raises(StoreUnavailableError, match="moved, replaced or deleted"):
        await read()
    put_back(path)
    await read()
