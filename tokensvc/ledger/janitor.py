"""Deletes what has expired, in slices small enough that no mint waits long for one.

A row costs about as much to delete as to insert, or more, since those that expire together were seldom
inserted together; a service that mints all day deletes all day. On SQLite there is one writer: a slice is
a transaction of the ledger's own, between two of its commits, of a millisecond or so; it waits for no
disk, and then the janitor rests for as long as leaves most of the time to the commits. How long depends
on how late it is. So it deletes as fast as tokens expire, whatever that takes, a little late the faster
they do, and not in a rush once a minute.

On PostgreSQL the ledger is partitioned by the day of expiry: there the janitor makes the partitions of
the days ahead and drops those of days that are over, and only what stands in the default partition is
deleted row by row. So a row is kept up to a day longer than on SQLite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Column, Connection, Delete, Table, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.store.faults import store_faults
from tokensvc.store.partitions import (
    add_partition,
    default_partition,
    drop_partition,
    expired_partitions,
    missing_partitions,
)
from tokensvc.store.tables import idempotency_records, issued_tokens
from tokensvc.store.transactions import Transactions

__all__ = ["LedgerJanitor", "expired_tokens"]

SLICE_ROWS: Final = {"sqlite": 25, "postgresql": 500}
"""On SQLite a millisecond or two, for which commits wait: with a million rows, nearly every index has each of
these on a page of its own. On PostgreSQL nobody waits for them."""

MAX_SWEEP_SECONDS: Final = 60.0
"""Then a sweep ends, so that whoever asked for it sees again whether it may delete."""

LATE_SECONDS: Final = 6 * 3600.0
LEAST_BUSY: Final = 0.02
MOST_BUSY: Final = 0.5
"""The part of the time in which it deletes: when it is on time, and when it is LATE_SECONDS late or more. In
between it grows evenly, so that it finds by itself how much it takes: measured, 1,400 rows a second where it
is 45 minutes late."""

_log = structlog.get_logger(__name__)


class LedgerJanitor:
    """Keeps a row `retention` seconds beyond its expiry; replicas may sweep at the same time.

    On SQLite, `transactions` are the ledger's own. `clock` gives Unix seconds, `monotonic` those of a
    clock that never steps; a slice has `slice_rows` where the database's own number is not wanted.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        transactions: Transactions,
        *,
        retention: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        slice_rows: int | None = None,
    ) -> None:
        self._engine = engine
        self._transactions = transactions
        self._retention = retention
        self._clock = clock
        self._sleep = sleep
        self._monotonic = monotonic
        self._slice_rows = slice_rows or SLICE_ROWS[engine.dialect.name]
        self._late = 0.0

    def late(self) -> float:
        """Return how many seconds late the last sweep was at its end; 0 if it left nothing."""
        return self._late

    def stand_by(self) -> None:
        """Take note that another one deletes now, or nobody may."""
        self._late = 0.0

    async def sweep(self) -> int:
        """Delete what is due, for a minute at most, and return how many rows that was.

        Rows that go with their partition are not counted. Raises StoreUnavailableError.
        """
        partitioned = self._engine.dialect.name == "postgresql"
        now, ends_at = self._clock(), self._monotonic() + MAX_SWEEP_SECONDS
        due = [
            partial(
                self._delete,
                default_partition.c.exp if partitioned else issued_tokens.c.exp,
                expired_tokens,
                now - self._retention,
            ),
            partial(self._delete, idempotency_records.c.expires_at, _expired_records, now),
        ]
        deleted, late = 0, 0.0
        # In turns, so that neither has to wait for the other to be done.
        while due:
            for work in tuple(due):
                done = await self._transactions.run("delete expired rows", work, may_be_lost=True)
                deleted += done.rows
                if done.rows < self._slice_rows:
                    due.remove(work)
                elif self._monotonic() >= ends_at:
                    due.remove(work)
                    late = max(late, done.late)
                else:
                    await self._sleep(_rest(done))
        self._late = late
        if partitioned:
            await self._tend_partitions(now)
        return deleted

    def _delete(
        self,
        expiry: Column[Any],
        expired: Callable[[float, int, Table], Delete],
        before: float,
        connection: Connection,
    ) -> _Slice:
        """Delete one slice of a table, in a thread of the transactions' or on the event loop."""
        began = self._monotonic()
        oldest = connection.execute(select(func.min(expiry))).scalar()
        # SQLite sorts what is no number behind all numbers, so a row that is damaged stops no other.
        if not isinstance(oldest, (int, float)) or oldest > before:
            return _Slice(0, 0.0, 0.0)
        rows = connection.execute(expired(before, self._slice_rows, expiry.table)).rowcount
        return _Slice(rows, before - oldest, self._monotonic() - began)

    async def _tend_partitions(self, now: float) -> None:
        """Drop the partitions of days that are over, and make those of days to come, one by one."""
        before = now - self._retention
        with store_faults("read partitions"):
            async with self._engine.connect() as connection:
                over = await connection.run_sync(expired_partitions, before)
                missing = await connection.run_sync(missing_partitions, now)
        for day in over:
            with store_faults("drop partition"):
                async with self._engine.begin() as connection:
                    if await connection.run_sync(drop_partition, day):
                        _log.info("ledger_partition_dropped", day=day.isoformat())
        for day in missing:
            with store_faults("make partition"):
                async with self._engine.begin() as connection:
                    if await connection.run_sync(add_partition, day):
                        _log.info("ledger_partition_made", day=day.isoformat())


class _Slice(NamedTuple):
    """What one transaction deleted, how late the first of it was, and how long it took, in seconds."""

    rows: int
    late: float
    took: float


def _rest(done: _Slice) -> float:
    """Return for how many seconds to rest after a slice."""
    busy = LEAST_BUSY + (MOST_BUSY - LEAST_BUSY) * min(done.late / LATE_SECONDS, 1.0)
    return done.took * (1 / busy - 1)


def expired_tokens(before: float, count: int, table: Table = issued_tokens) -> Delete:
    """Return the statement that deletes `count` tokens that expired by `before`, oldest first."""
    due: Any = (
        select(table.c.row_id).where(table.c.exp <= before).order_by(table.c.exp).limit(count)
    )
    return delete(table).where(table.c.row_id.in_(due))


def _expired_records(before: float, count: int, table: Table) -> Delete:
    columns = table.primary_key.columns
    due: Any = (
        select(*columns)
        .where(table.c.expires_at <= before)
        .order_by(table.c.expires_at)
        .limit(count)
    )
    return delete(table).where(tuple_(*columns).in_(due))
