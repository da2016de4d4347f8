"""The database as the settings have it; for the service and for the commands."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.settings import Settings
from tokensvc.store import DatabaseLimits, open_engine

__all__ = ["database_limits", "open_database"]


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
