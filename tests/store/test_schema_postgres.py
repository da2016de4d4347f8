"""Migrations on PostgreSQL: to what `tables.py` declares, once, whole, one at a time, and beside work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import alembic.op
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text
from sqlalchemy.dialects import postgresql as postgresql_dialect

from tests.postgres import PASSWORD, PostgresServer
from tokensvc.errors import ConfigurationError, StoreUnavailableError
from tokensvc.store import ensure_current, open_engine, upgrade
from tokensvc.store.schema import HEAD
from tokensvc.store.tables import feeds, metadata


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.empty_database()
    yield url
    postgres.release(url)


async def look(url: str, work: Callable[[Connection], Any]) -> Any:
    engine = open_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def tables(connection: Connection) -> set[str]:
    query = text(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    return set(connection.execute(query).scalars())


async def test_migrations_make_the_declared_tables(url):
    assert upgrade(url) is True

    def differences(connection: Connection) -> list[Any]:
        def is_ours(_object: Any, name: str | None, kind: str, *_: Any) -> bool:
            # The partitions are parts of the table; its key is what the index is on SQLite.
            return not (
                (kind == "table" and str(name).startswith("issued_tokens_"))
                or (kind == "index" and name == "ix_issued_tokens_exp")
            )

        options = {"compare_server_default": True, "include_object": is_ours}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, metadata)

    assert await look(url, differences) == []
    assert await look(url, tables) == {*metadata.tables, "alembic_version"}


async def test_the_ledgers_key_is_its_expiry_and_its_number(url):
    upgrade(url)
    query = text(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'pk_issued_tokens'"
    )
    assert await look(url, lambda connection: connection.execute(query).scalar_one()) == (
        "PRIMARY KEY (exp, row_id)"
    )


async def test_an_upgrade_is_made_once_and_is_then_served(url):
    assert upgrade(url) is True
    assert upgrade(url) is False
    engine = open_engine(url)
    await ensure_current(engine)
    await engine.dispose()


async def test_an_empty_database_is_not_served(url):
    engine = open_engine(url)
    with pytest.raises(ConfigurationError, match=f"at revision none and {HEAD} is needed"):
        await ensure_current(engine)
    await engine.dispose()


async def test_a_database_of_a_later_version_is_served_and_left_alone(url):
    upgrade(url)
    later = text("UPDATE alembic_version SET version_num = '9999'")
    await look(url, lambda connection: connection.execute(later))
    engine = open_engine(url)
    await ensure_current(engine)
    await engine.dispose()
    assert upgrade(url) is False


async def test_an_upgrade_that_fails_leaves_nothing_and_can_be_repeated(url, monkeypatch):
    class CutOffError(Exception):
        pass

    def cut(*_args: Any, **_options: Any) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(alembic.op, "bulk_insert", cut)
        with pytest.raises(CutOffError):
            upgrade(url)
    assert await look(url, tables) == set()
    assert upgrade(url) is True


def test_of_upgrades_at_once_one_does_the_work(url):
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: upgrade(url), range(4)))
    assert sorted(done) == [False, False, False, True]


async def test_an_upgrade_waits_for_the_one_that_is_under_way(url):
    from tokensvc.store import schema

    engine = open_engine(url)
    async with engine.connect() as other:
        lock = text(f"SELECT pg_advisory_xact_lock({schema._UPGRADE_LOCK})")
        await other.execute(lock)
        upgrading = asyncio.create_task(asyncio.to_thread(upgrade, url))
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        async with asyncio.timeout(30):
            while not (await other.execute(waiting)).scalar_one():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not upgrading.done()
        assert await look(url, tables) == set()
        await other.rollback()
        assert await upgrading is True
    await engine.dispose()


def test_an_upgrade_of_a_server_that_is_down_says_so(postgres):
    with pytest.raises(StoreUnavailableError, match="refuses connections") as caught:
        upgrade(postgres.url("any", port=1))
    assert PASSWORD not in f"{caught.value!r}{caught.value.context}{caught.value.__cause__}"


def test_every_value_that_is_stored_fits_the_columns_on_both(postgres):
    """No column is of a type that one of the engines keeps otherwise (a REAL for a double)."""
    types = {
        str(column.type.compile(dialect=postgresql_dialect.dialect())).partition("(")[0]
        for table in metadata.tables.values()
        for column in table.columns
    }
    assert types == {"VARCHAR", "TEXT", "BYTEA", "BIGINT", "INTEGER", "DOUBLE PRECISION"}


async def test_a_change_is_notified_in_its_own_transaction(url):
    upgrade(url)
    engine = open_engine(url)
    heard: list[str] = []
    async with engine.connect() as listening:
        raw = (await listening.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.add_listener("tokensvc", lambda *said: heard.append(said[-1]))
        async with engine.begin() as connection:
            await connection.execute(insert(feeds).values(name="later", version=1))
        async with asyncio.timeout(20):
            while not heard:
                await raw.execute("SELECT 1")
        await raw.reset()
    await engine.dispose()
    assert heard == ["later"]
