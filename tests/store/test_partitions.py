"""The ledger's partitions on PostgreSQL: made ahead, filled from the default one, dropped as a whole."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.ledger.support import row
from tokensvc.errors import StoreUnavailableError
from tokensvc.ledger import LedgerJanitor
from tokensvc.store import open_engine
from tokensvc.store.tables import issued_tokens
from tokensvc.store.transactions import open_transactions

DAY = 86_400
NOW = 1_900_000_000
"""A moment in 2030: no partition of its day, or of those after it, was made by the migration."""


def name_of(moment: float) -> str:
    return f"issued_tokens_{datetime.fromtimestamp(moment, UTC):%Y%m%d}"


async def record(engine: AsyncEngine, *expiries: int) -> None:
    rows = [
        {name: value for name, value in row(exp=exp)._asdict().items() if name != "endpoints"}
        for exp in expiries
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(issued_tokens), rows)


async def where_rows_are(engine: AsyncEngine) -> dict[int, str]:
    query = text("SELECT exp, tableoid::regclass::text AS name FROM issued_tokens")
    async with engine.connect() as connection:
        return {row.exp: row.name for row in await connection.execute(query)}


async def partitions(engine: AsyncEngine) -> list[str]:
    query = text(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'issued_tokens'::regclass ORDER BY 1"
    )
    async with engine.connect() as connection:
        return list((await connection.execute(query)).scalars())


def janitor(engine: AsyncEngine, now: float = NOW, retention: float = 0) -> LedgerJanitor:
    transactions = open_transactions(engine)
    return LedgerJanitor(engine, transactions, retention=retention, clock=lambda: now)


async def test_the_longest_token_issued_after_an_upgrade_finds_its_partition(engine):
    now = int(datetime.now(UTC).timestamp())
    expiries = (now + 1, now + 14 * DAY, now + 28 * DAY, now + 29 * DAY)
    await record(engine, *expiries)
    assert await where_rows_are(engine) == {exp: name_of(exp) for exp in expiries}


async def test_a_row_without_a_partition_is_kept_and_moves_when_its_day_is_made(engine):
    expiries = (NOW + 5, NOW + DAY, NOW + 28 * DAY)
    await record(engine, *expiries)
    assert set((await where_rows_are(engine)).values()) == {"issued_tokens_default"}
    await janitor(engine).sweep()
    assert await where_rows_are(engine) == {exp: name_of(exp) for exp in expiries}
    await record(engine, NOW + 2 * DAY)
    assert (await where_rows_are(engine))[NOW + 2 * DAY] == name_of(NOW + 2 * DAY)


async def test_a_day_is_dropped_when_its_last_token_has_been_kept_long_enough(engine):
    end_of_day = (NOW // DAY + 1) * DAY
    await janitor(engine).sweep()
    await record(engine, NOW, end_of_day - 1, end_of_day)
    await janitor(engine, end_of_day + 99, retention=100).sweep()
    assert len(await where_rows_are(engine)) == 3
    await janitor(engine, end_of_day + 100, retention=100).sweep()
    assert await where_rows_are(engine) == {end_of_day: name_of(end_of_day)}
    assert name_of(NOW) not in await partitions(engine)
    late = [NOW, end_of_day - 1]
    await record(engine, *late)
    assert await janitor(engine, end_of_day + 100, retention=100).sweep() == len(late)


async def test_janitors_of_several_replicas_do_the_work_once(engine, url):
    other = open_engine(url)
    await record(engine, *(NOW + 5 + day * DAY for day in range(10)))
    await asyncio.gather(*(janitor(one).sweep() for one in (engine, other, engine, other)))
    await janitor(other).sweep()
    await other.dispose()
    assert set((await where_rows_are(engine)).values()) == {
        name_of(NOW + 5 + day * DAY) for day in range(10)
    }


async def test_who_reads_the_ledger_for_long_holds_the_janitor_up_and_not_the_mints(engine, url):
    """A drop gives up after a second, so nobody waits behind it for longer."""
    await janitor(engine).sweep()
    await record(engine, NOW)
    other = open_engine(url)
    async with other.connect() as reader:
        await reader.execute(text("SELECT count(*) FROM issued_tokens"))
        with pytest.raises(StoreUnavailableError, match="locked by another transaction"):
            await janitor(engine, NOW + 2 * DAY).sweep()
        await record(engine, NOW + 3)
    await janitor(engine, NOW + 2 * DAY).sweep()
    assert await where_rows_are(engine) == {}
    await other.dispose()


async def test_a_page_reads_only_the_days_that_it_asks_for(engine):
    await janitor(engine).sweep()
    query = f"EXPLAIN SELECT * FROM issued_tokens WHERE key_id = 'k' AND exp > {NOW + 27 * DAY}"
    async with engine.connect() as connection:
        plan = "\n".join((await connection.execute(text(query))).scalars())
    assert name_of(NOW + 28 * DAY) in plan
    assert name_of(NOW) not in plan
