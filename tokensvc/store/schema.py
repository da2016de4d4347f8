"""The schema's revision: bringing it up to date, and refusing to serve on an old one.

Only `tokensvc db upgrade` (and `tokensvc dev`, for its own file) migrates; a serving process checks
and stops. Revisions are named by four digits and only ever grow. A database ahead of the program is
accepted, since migrations expand first and contract only when no old replica is left.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import ConfigurationError
from tokensvc.store.engine import open_migration_engine
from tokensvc.store.faults import store_faults
from tokensvc.store.partitions import add_missing_partitions
from tokensvc.store.postgresql import DatabaseLimits, is_postgresql, open_single_engine

__all__ = ["HEAD", "ensure_current", "upgrade"]

HEAD: Final = "0007"
"""The newest migration of this program; known here so that serving need not load Alembic."""

_UPGRADE_LOCK: Final = 7_046_029_254
"""Names the advisory lock that one upgrade at a time holds; any number that nobody else uses."""

_MIGRATION_LIMITS: Final = DatabaseLimits(
    connect_timeout=10.0, statement_timeout=600.0, lock_timeout=300.0
)
_DDL_LOCK_TIMEOUT: Final = "5s"
"""A change of a table waits no longer for those who use it, since all others would wait behind it."""


def upgrade(url: str) -> bool:
    """Create the schema or bring it to `HEAD`, in one transaction; tell whether that took anything.

    Blocking. Two upgrades at once run one after the other. A missing SQLite file is created; on
    PostgreSQL the database is there already. Raises ConfigurationError as `open_migration_engine`
    does, and StoreUnavailableError where the database refuses.
    """
    if is_postgresql(url):
        # In a thread, since whoever calls may have an event loop running.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, _upgrade_postgresql(url)).result()
    engine = open_migration_engine(url)
    try:
        with store_faults("upgrade schema"), engine.begin() as connection:
            found = _revision(connection)
            if found is not None and found >= HEAD:
                return False
            _migrate(connection)
            return True
    finally:
        engine.dispose()


async def _upgrade_postgresql(url: str) -> bool:
    engine = open_single_engine(url, _MIGRATION_LIMITS)
    try:
        with store_faults("upgrade schema"):
            async with engine.begin() as connection:
                return await connection.run_sync(_upgrade_locked)
    finally:
        await engine.dispose()


def _upgrade_locked(connection: Connection) -> bool:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
    found = _revision(connection)
    if found is not None and found >= HEAD:
        return False
    connection.execute(text(f"SET LOCAL lock_timeout = '{_DDL_LOCK_TIMEOUT}'"))
    _migrate(connection)
    add_missing_partitions(connection, time.time())
    return True


async def ensure_current(engine: AsyncEngine) -> None:
    """Raise ConfigurationError unless the schema is the one this program works on.

    Raises StoreUnavailableError where the database does not answer.
    """
    with store_faults("read schema revision"):
        async with engine.connect() as connection:
            found = await connection.run_sync(_revision)
    if found is None or found < HEAD:
        raise ConfigurationError(
            f"The database is at revision {found or 'none'} and {HEAD} is needed: "
            "run `tokensvc db upgrade`."
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


def _migrate(connection: Connection) -> None:
    # Alembic takes longer to load than all the rest of the store; only a migration pays for it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
