"""Many rows in few statements, whatever their number."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from math import ceil
from pathlib import Path

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.exc import IntegrityError

from tokensvc.errors import StoreRefusedError, StoreUnavailableError
from tokensvc.store import open_engine, upgrade
from tokensvc.store.tables import leases
from tokensvc.store.transactions import Insertion, insert_absent, insert_rows, open_transactions

NUMBERS = Table("numbers", MetaData(), Column("number", Integer), Column("name", Text))


def inserted(counts: range | tuple[int, ...]) -> list[str]:
    """Insert so many rows, one transaction each; return the statements that it took."""
    engine = create_engine("sqlite://")
    statements: list[str] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )
    with engine.begin() as connection:
        NUMBERS.create(connection)
        statements.clear()
        total = 0
        for count in counts:
            rows = [(total + number, f"n{total + number}") for number in range(count)]
            insert_rows(connection, NUMBERS, ("number", "name"), rows)
            total += count
        made = list(statements)
        stored = connection.execute(select(NUMBERS).order_by(NUMBERS.c.number)).all()
    assert [tuple(row) for row in stored] == [(n, f"n{n}") for n in range(total)]
    return made


@pytest.mark.parametrize("count", [0, 1, 5, 63, 64, 65, 100, 255, 256, 257, 1000, 2000])
def test_every_row_is_there_once_and_in_few_statements(count: int):
    assert len(inserted((count,))) == ceil(count / 256)


def test_numbers_of_rows_however_many_make_few_different_statements():
    assert len(set(inserted(range(0, 2000, 7)))) <= 15


def test_of_rows_that_may_be_there_the_others_are_inserted_once_and_in_few_statements():
    engine = create_engine("sqlite://")
    unique = Table("names", MetaData(), Column("name", Text, unique=True), Column("of", Integer))
    unique.create(engine)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with engine.begin() as connection:
        for count in range(1, 300, 3):
            rows = [{"name": f"n{number}", "of": count} for number in range(count)]
            insert_absent(connection, unique, rows)
        made = list(statements)
        stored = connection.execute(select(unique)).all()
    assert {row.name: row.of for row in stored} == {f"n{n}": -(-n // 3) * 3 + 1 for n in range(298)}
    assert len(stored) == 298
    assert len(set(made)) <= 15


COLUMNS = ("kind", "number", "place", "name")


@pytest.mark.parametrize(
    ("count", "kinds", "statements"),
    [(0, 1, 0), (1, 1, 1), (50, 1, 1), (256, 1, 1), (600, 2, 4), (50, 5, 5), (50, 7, 1), (9, 2, 1)],
)
def test_what_rows_have_in_common_is_given_once_if_enough_of_them_have_it(
    count: int, kinds: int, statements: int
):
    rows = [(f"k{n % kinds}", n, None if n % kinds else "p", f"n{n}") for n in range(count)]
    engine = create_engine("sqlite://")
    table = Table("things", MetaData(), *(Column(name, Text) for name in COLUMNS))
    table.create(engine)
    made: list[tuple[str, int]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda *given: made.append((given[2], len(given[3]))),
    )
    with engine.begin() as connection:
        insert_rows(connection, table, COLUMNS, rows, alike=("kind", "place"))
        assert len(made) == statements
        stored = connection.execute(select(table)).all()
    assert sorted(map(tuple, stored), key=lambda row: int(row[1])) == [
        (kind, str(number), place, name) for kind, number, place, name in rows
    ]


def test_a_row_that_is_refused_leaves_none_of_the_transaction():
    engine = create_engine("sqlite://")
    unique = Table("unique_numbers", MetaData(), Column("number", Integer, unique=True))
    unique.create(engine)
    with engine.connect() as connection:
        insert_rows(connection, unique, ("number",), [(0,)])
        with pytest.raises(IntegrityError):
            insert_rows(connection, unique, ("number",), [(1,), (2,), (1,), (3,)])
        connection.rollback()
    with engine.connect() as connection:
        assert connection.execute(select(unique)).all() == []


async def test_after_one_that_fails_the_next_transaction_begins_anew(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
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
    async with engine.connect() as connection:
        assert [tuple(one) for one in await connection.execute(select(leases))] == [row]
    await transactions.aclose()
    await engine.dispose()


@pytest.mark.parametrize("count", [1, 40, 256, 257, 600])
async def test_rows_alone_are_all_there_or_none_however_many_statements_they_take(
    tmp_path: Path, count: int
):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
    columns = tuple(leases.c.keys())

    async def stored() -> int:
        async with engine.connect() as connection:
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
    await transactions.aclose()
    await engine.dispose()


def rows_of(holder: str) -> Insertion:
    """Return what inserts 200 rows, which one statement does."""
    rows = [(f"n{number} of {holder}", holder, 1, 1.0) for number in range(200)]
    return Insertion(leases, tuple(leases.c.keys()), rows, ("holder", "fence"))


async def test_rows_alone_meet_a_full_disk_and_a_lock_as_others_do(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)

    async def pragma(text: str) -> None:
        await transactions.run("test", lambda one: one.exec_driver_sql(f"PRAGMA {text}").close())

    await pragma("max_page_count=1")
    with pytest.raises(StoreUnavailableError, match="is full"):
        await transactions.run("test", rows_of("full" * 16))
    await pragma("max_page_count=1000000")
    await pragma("busy_timeout=1")
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked by another process"):
            await transactions.run("test", rows_of("locked"))
    await transactions.run("test", rows_of("free"))
    async with engine.connect() as connection:
        stored = (await connection.execute(select(leases.c.holder))).scalars().all()
    assert stored == ["free"] * 200
    await transactions.aclose()
    await engine.dispose()


@pytest.fixture
def may_grow() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond so many bytes: a write that would fails, after what still had room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it.
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [0, 5_000, 9_000])
async def test_rows_alone_meet_a_disk_that_fails_and_the_next_are_there(
    tmp_path: Path, may_grow: Callable[[int], None], more: int
):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)

    await transactions.run("test", rows_of("first"))
    # Whole pages of the transaction, and part of one, are in the journal when it fails.
    may_grow((tmp_path / "a.db-wal").stat().st_size + more)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="disk that holds the database fails"):
            await transactions.run("test", rows_of("failed"))
    may_grow(2**40)
    await transactions.run("test", rows_of("next"))
    # Of another connection, so no transaction was left open.
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None, timeout=0)) as other:
        stored = other.execute("SELECT holder, count(*) FROM leases GROUP BY holder").fetchall()
        assert stored == [("first", 200), ("next", 200)]
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        other.execute("ROLLBACK")
    await transactions.aclose()
    await engine.dispose()


async def test_rows_alone_wait_for_another_writer_and_see_what_it_has_written(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)

    def insertion(name: str) -> Insertion:
        return Insertion(
            leases, tuple(leases.c.keys()), [(name, "we", 1, 1.0)], ("holder", "fence")
        )

    await transactions.run("test", insertion("before"))
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
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
    await transactions.aclose()
    await engine.dispose()


async def test_a_disk_that_hangs_holds_nobody_up_for_good_and_who_gave_up_in_the_queue_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
    goes_on, done = threading.Event(), []

    def hang(_: object) -> None:
        goes_on.wait()

    with monkeypatch.context() as impatient:
        impatient.setattr("tokensvc.store.transactions.MAX_SECONDS", 0.01)
        for work in (hang, done.append):
            with pytest.raises(StoreUnavailableError, match="in time") as refused:
                await transactions.run("test", work)
            assert refused.value.retry_after
    goes_on.set()
    assert await transactions.run("test", lambda _: "on") == "on"
    assert done == []
    await transactions.aclose()
    await engine.dispose()
