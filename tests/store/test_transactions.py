"""Transactions of one writer on SQLite: all of each or none, whatever it meets."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import Connection, func, select
from structlog.testing import capture_logs

from tests.store.support import Store
from tokensvc.errors import StoreRefusedError, StoreUnavailableError
from tokensvc.store import engine as engine_module
from tokensvc.store.inserts import Insertion, insert_rows
from tokensvc.store.tables import leases
from tokensvc.store.transactions import Transactions, open_transactions

PATIENCE_SECONDS = 10.0


async def test_after_one_that_fails_the_next_transaction_begins_anew(store: Store):
    transactions = store.transactions
    row = ("a lease", "somebody", 1, 1.0)

    def insert(connection: Connection) -> None:
        insert_rows(connection, leases, tuple(leases.c.keys()), [row])

    def fail(connection: Connection) -> None:
        insert(connection)
        raise ZeroDivisionError

    def twice(connection: Connection) -> None:
        insert(connection)
        insert(connection)

    for work, error in (
        (fail, ZeroDivisionError),
        (twice, StoreRefusedError),
        (fail, ZeroDivisionError),
    ):
        with pytest.raises(error):
            await transactions.run("test", work)
    await transactions.run("test", insert)
    async with store.engine.connect() as connection:
        assert [tuple(one) for one in await connection.execute(select(leases))] == [row]


@pytest.mark.parametrize("count", [1, 40, 256, 257, 600])
async def test_rows_alone_are_all_there_or_none_however_many_statements_they_take(
    store: Store, count: int
):
    transactions = store.transactions
    columns = tuple(leases.c.keys())

    async def stored() -> int:
        async with store.engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(leases))).scalar_one()

    def insertion(first: int, last: object) -> Insertion:
        rows: list[tuple[object, ...]]
        rows = [(f"n{first + number}", "somebody", 1, 1.0) for number in range(count - 1)]
        return Insertion(leases, columns, [*rows, (last, "somebody", 1, 1.0)], ("holder", "fence"))

    await transactions.run("test", insertion(0, "last"))
    assert await stored() == count
    for refused in ("last", None, "\ud800"):
        with pytest.raises(StoreRefusedError):
            await transactions.run("test", insertion(count, refused))
        assert await stored() == count
    await transactions.run("test", insertion(count, "another"))
    assert await stored() == 2 * count


def rows_of(holder: str) -> Insertion:
    """Return what inserts 200 rows, which one statement does."""
    rows = [(f"n{number} of {holder}", holder, 1, 1.0) for number in range(200)]
    return Insertion(leases, tuple(leases.c.keys()), rows, ("holder", "fence"))


async def test_rows_alone_meet_a_full_disk_and_a_lock_as_others_do(store: Store):
    transactions = store.transactions

    async def pragma(text: str) -> None:
        await transactions.run("test", lambda one: one.exec_driver_sql(f"PRAGMA {text}").close())

    await pragma("max_page_count=1")
    with pytest.raises(StoreUnavailableError, match="is full"):
        await transactions.run("test", rows_of("full" * 16))
    await pragma("max_page_count=1000000")
    await pragma("busy_timeout=1")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked by another process"):
            await transactions.run("test", rows_of("locked"))
    await transactions.run("test", rows_of("free"))
    async with store.engine.connect() as connection:
        stored = (await connection.execute(select(leases.c.holder))).scalars().all()
    assert stored == ["free"] * 200


async def test_a_connection_that_cannot_be_told_to_wait_for_the_disk_again_commits_nothing_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = store.transactions

    def how_it_waits(connection: Connection) -> tuple[object, int]:
        waits = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        return waits, id(connection.connection.dbapi_connection)

    _, first = await transactions.run("test", how_it_waits)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_SYNCED", "PRAGMA of no such kind")
        with pytest.raises(StoreUnavailableError):
            await transactions.run("test", how_it_waits, may_be_lost=True)
    waits, second = await transactions.run("test", how_it_waits)
    assert waits == 2
    assert second != first


@pytest.fixture
def may_grow() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond so many bytes: a write that would fails, after what still had room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it.
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [0, 5_000, 9_000])
async def test_rows_alone_meet_a_disk_that_fails_and_the_next_are_there(
    store: Store, may_grow: Callable[[int], None], more: int
):
    transactions = store.transactions
    await transactions.run("test", rows_of("first"))
    # Whole pages of the transaction, and part of one, are in the journal when it fails.
    may_grow(store.path.with_name("a.db-wal").stat().st_size + more)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="disk that holds the database fails"):
            await transactions.run("test", rows_of("failed"))
    may_grow(2**40)
    await transactions.run("test", rows_of("next"))
    # Of another connection, so no transaction was left open.
    with closing(sqlite3.connect(store.path, isolation_level=None, timeout=0)) as other:
        stored = other.execute("SELECT holder, count(*) FROM leases GROUP BY holder").fetchall()
        assert stored == [("first", 200), ("next", 200)]
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        other.execute("ROLLBACK")


async def test_rows_alone_wait_for_another_writer_and_see_what_it_has_written(store: Store):
    transactions = store.transactions

    def insertion(name: str) -> Insertion:
        return Insertion(
            leases, tuple(leases.c.keys()), [(name, "we", 1, 1.0)], ("holder", "fence")
        )

    await transactions.run("test", insertion("before"))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO leases VALUES ('theirs', 'they', 1, 1.0)")
        ours, same = [
            asyncio.create_task(transactions.run("test", insertion(name)))
            for name in ("ours", "theirs")
        ]
        done, _ = await asyncio.wait([ours], timeout=0.05)
        assert not done
        other.execute("COMMIT")
        await ours
        with pytest.raises(StoreRefusedError):
            await same
        names = other.execute("SELECT name FROM leases ORDER BY name").fetchall()
    assert names == [("before",), ("ours",), ("theirs",)]


class Hanging:
    """A transaction that does not end until it is told to."""

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, _: object) -> None:
        self.begun.set()
        self.goes_on.wait()

    async def is_given_up(self, transactions: Transactions) -> None:
        """See that whoever runs it is told that it was not in time, which is not before it has begun."""
        given_up = asyncio.create_task(transactions.run("test", self))
        await asyncio.sleep(0)
        # The event loop stands still, and its timers with it.
        assert self.begun.wait(PATIENCE_SECONDS)
        with pytest.raises(StoreUnavailableError, match="in time") as refused:
            await given_up
        assert refused.value.retry_after


async def test_a_disk_that_hangs_holds_nobody_up_for_good_and_who_gave_up_in_the_queue_writes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    transactions = store.transactions
    hanging, done = Hanging(), list[object]()
    with monkeypatch.context() as impatient:
        impatient.setattr("tokensvc.store.transactions.MAX_SECONDS", 0.01)
        await hanging.is_given_up(transactions)
        with pytest.raises(StoreUnavailableError, match="in time") as refused:
            await transactions.run("test", done.append)
        assert refused.value.retry_after
    hanging.goes_on.set()
    assert await transactions.run("test", lambda _: "on") == "on"
    assert done == []


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    hanging = Hanging()
    transactions = open_transactions(store.engine)
    with monkeypatch.context() as impatient, capture_logs() as logs:
        impatient.setattr("tokensvc.store.transactions.MAX_SECONDS", 0.01)
        await hanging.is_given_up(transactions)
        await transactions.aclose()
    hanging.goes_on.set()
    assert [one["event"] for one in logs] == ["store_writer_hangs"]
