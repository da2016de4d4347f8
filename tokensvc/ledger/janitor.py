"""Deletes what has expired, in slices small enough that no mint waits long for one.

On SQLite a slice holds the only write lock for some milliseconds; between two slices the ledger's
writer gets its turn. On PostgreSQL the ledger is partitioned by the day of expiry: there the janitor
makes the partitions of the days ahead and drops those of days that are over, and only what stands in the
default partition is deleted row by row. So a row is kept up to a day longer than on SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from sqlalchemy import Delete, Table, delete, select, tuple_
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

__all__ = ["LedgerJanitor", "expired_tokens"]

SLICE_ROWS: Final = 500
PAUSE_SECONDS: Final = 0.05
MAX_SLICES: Final = 1_000
"""Of one sweep: 500,000 rows, so that one a minute keeps up with 5,000 tokens a second, and each ends."""

_log = structlog.get_logger(__name__)


class LedgerJanitor:
    """Keeps a row `retention` seconds beyond its expiry; replicas may sweep at the same time."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        retention: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        slice_rows: int = SLICE_ROWS,
    ) -> None:
        self._engine = engine
        self._retention = retention
        self._clock = clock
        self._sleep = sleep
        self._slice_rows = slice_rows

    async def sweep(self) -> int:
        """Delete what is due, and return how many rows that was; raises StoreUnavailableError.

        Rows that go with their partition are not counted.
        """
        now = self._clock()
        partitioned = self._engine.dialect.name == "postgresql"
        table = default_partition if partitioned else issued_tokens
        deleted = await self._delete_all(
            expired_tokens(now - self._retention, self._slice_rows, table)
        )
        deleted += await self._delete_all(_expired_records(now, self._slice_rows))
        if partitioned:
            await self._tend_partitions(now)
        return deleted

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

    async def _delete_all(self, statement: Delete) -> int:
        total = 0
        for _ in range(MAX_SLICES):
            with store_faults("delete expired rows"):
                async with self._engine.begin() as connection:
                    deleted = (await connection.execute(statement)).rowcount
            total += deleted
            if deleted < self._slice_rows:
                break
            await self._sleep(PAUSE_SECONDS)
        return total


def expired_tokens(before: float, count: int, table: Table = issued_tokens) -> Delete:
    """Return the statement that deletes `count` tokens that expired by `before`, oldest first."""
    due: Any = (
        select(table.c.row_id).where(table.c.exp <= before).order_by(table.c.exp).limit(count)
    )
    return delete(table).where(table.c.row_id.in_(due))


def _expired_records(before: float, count: int) -> Delete:
    columns = idempotency_records.primary_key.columns
    due: Any = (
        select(*columns)
        .where(idempotency_records.c.expires_at <= before)
        .order_by(idempotency_records.c.expires_at)
        .limit(count)
    )
    return delete(idempotency_records).where(tuple_(*columns).in_(due))
