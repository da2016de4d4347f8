"""The database as the settings have it; for the service and for the commands."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.settings import Settings
from tokensvc.store import DatabaseLimits, open_engine
from tokensvc.store.transactions import Transactions, open_transactions

__all__ = ["database_limits", "deleting_writes", "open_database", "open_writes"]

WRITE_CONNECTIONS: Final = 2
"""To PostgreSQL, beside the pool: one for the ledger's commits, one for disconnects and bans."""


def database_limits(settings: Settings) -> DatabaseLimits:
    """Return how much of PostgreSQL one process may take, and how long it waits."""
    return DatabaseLimits(
        pool_size=settings.database_pool_size,
        connect_timeout=settings.database_connect_timeout,
        statement_timeout=settings.database_statement_timeout,
        lock_timeout=settings.database_lock_timeout,
    )


def open_database(settings: Settings) -> AsyncEngine:
    """Return an engine; raises ConfigurationError as `open_engine` does."""
    return open_engine(settings.database_url, database_limits(settings))


def open_writes(settings: Settings, engine: AsyncEngine) -> Transactions:
    """Return the transactions of the writers; `engine` is the one that reads.

    On PostgreSQL they have connections of their own, so that no mint waits behind somebody's reports.
    """
    if engine.dialect.name == "sqlite":
        return open_transactions(engine)
    limits = replace(database_limits(settings), pool_size=WRITE_CONNECTIONS)
    return open_transactions(open_engine(settings.database_url, limits), owned=True)


def deleting_writes(engine: AsyncEngine, writes: Transactions) -> Transactions:
    """Return the transactions of who deletes what has expired, given those of the writers.

    SQLite has one writer anyway; in its own turn nobody has to try again and again for the lock. On
    PostgreSQL they are of the pool of `engine`, so that no mint waits for a connection.
    """
    return writes if engine.dialect.name == "sqlite" else open_transactions(engine)
