"""The schema's revision: bringing it up to date, and refusing to serve on an old one.

Only `tokensvc db upgrade` (and `tokensvc dev`, for its own file) migrates; a serving process checks
and stops. Revisions are named by four digits and only ever grow. A database ahead of the program is
accepted, since migrations expand first and contract only when no old replica is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import ConfigurationError
from tokensvc.store.engine import open_migration_engine
from tokensvc.store.faults import store_faults

__all__ = ["HEAD", "ensure_current", "upgrade"]

HEAD: Final = "0004"
"""The newest migration of this program; known here so that serving need not load Alembic."""


def upgrade(url: str) -> bool:
    """Create the database or bring it to `HEAD`, in one transaction; tell whether that took anything.

    Blocking. Two upgrades at once run one after the other. Raises ConfigurationError as
    `open_migration_engine` does, and StoreUnavailableError where the database refuses.
    """
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
