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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import (
    Column,
    Connection,
    Delete,
    Integer,
    bindparam,
    delete,
    func,
    select,
    tuple_,
)
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

__all__ = ["LedgerJanitor", "expired_rows"]

SLICE_ROWS: Final = {"sqlite": 25, "postgresql": 500}
"""On SQLite a millisecond or two, for which commits wait: with a million rows, nearly every index has each of
these on a page of its own. On PostgreSQL nobody waits for them."""

MAX_SWEEP_SECONDS: Final = 60.0
"""Then a sweep ends, so that whoever asked for it sees again whether it may delete."""

SLICES_IN_A_ROW: Final = 50
"""Then it looks again how late it is."""

LATE_SECONDS: Final = 12 * 3600.0
LEAST_BUSY: Final = {"sqlite": 0.02, "postgresql": 0.3}
MOST_BUSY: Final = 0.5
"""The part of the time in which it deletes: when it is on time, and when it is LATE_SECONDS late or more. In
between it grows evenly, so that it finds by itself how much it takes: measured on SQLite, 2,000 to 2,600 rows
a second where it is three hours late (docs/performance.md)."""

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
        tokens = default_partition if partitioned else issued_tokens
        due = [
            _Due(tokens.c.exp, int(now - self._retention)),
            _Due(idempotency_records.c.expires_at, now),
        ]
        deleted, late = 0, 0.0
        # In turns, so that neither has to wait for the other to be done.
        while due:
            for rows in tuple(due):
                done = await self._delete(rows)
                deleted += done.rows
                if done.rows < self._slice_rows:
                    due.remove(rows)
                elif self._monotonic() >= ends_at:
                    due.remove(rows)
                    late = max(late, rows.late)
                else:
                    # Before a slice, another process's lock may have been waited for.
                    left = max(0.0, ends_at - self._monotonic())
                    await self._sleep(min(self._rest(done.took, rows.late), left))
        self._late = late
        if partitioned:
            await self._tend_partitions(now)
        return deleted

    async def _delete(self, due: _Due) -> _Slice:
        if due.slices % SLICES_IN_A_ROW == 0:
            late = await self._late_by(due)
            if late is None:
                return _Slice(0, 0.0)
            due.late = late
        due.slices += 1
        values = {"before": due.before, "count": self._slice_rows}
        deletion = _Deletion(expired_rows(due.expiry), values, self._monotonic)
        return await self._transactions.run("delete expired rows", deletion, may_be_lost=True)

    async def _late_by(self, due: _Due) -> float | None:
        """Return how late the oldest row is; None where nothing is due."""
        with store_faults("look for expired rows"):
            async with self._engine.connect() as connection:
                oldest = (await connection.execute(select(func.min(due.expiry)))).scalar()
        # SQLite sorts what is no number behind all numbers, so a row that is damaged stops no other.
        if not isinstance(oldest, (int, float)) or oldest > due.before:
            return None
        return due.before - oldest

    def _rest(self, took: float, late: float) -> float:
        """Return for how many seconds to rest after a slice."""
        least = LEAST_BUSY[self._engine.dialect.name]
        busy = least + (MOST_BUSY - least) * min(late / LATE_SECONDS, 1.0)
        return took * (1 / busy - 1)

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


@dataclass(slots=True)
class _Due:
    """Rows of one kind that a sweep deletes: those that expired by `before`, in Unix seconds."""

    expiry: Column[Any]
    before: float
    slices: int = 0
    late: float = 0.0
    """By how many seconds the oldest was late, when that was last looked at."""


class _Slice(NamedTuple):
    """How many rows one transaction deleted, and how many seconds that took, its commit apart."""

    rows: int
    took: float


@dataclass(frozen=True, slots=True)
class _Deletion:
    expired: Delete
    values: Mapping[str, object]
    monotonic: Callable[[], float]

    def __call__(self, connection: Connection) -> _Slice:
        # On SQLite the lock is held already, for which others may have been waited.
        began = self.monotonic()
        rows = connection.execute(self.expired, self.values).rowcount
        return _Slice(rows, self.monotonic() - began)


@lru_cache(maxsize=4)
def expired_rows(expiry: Column[Any]) -> Delete:
    """Return the statement that deletes `count` rows whose `expiry` is not after `before`, oldest first."""
    key = expiry.table.primary_key.columns
    due: Any = (
        select(*key)
        .where(expiry <= bindparam("before", type_=expiry.type))
        .order_by(expiry)
        .limit(bindparam("count", type_=Integer))
    )
    return delete(expiry.table).where(tuple_(*key).in_(due))
