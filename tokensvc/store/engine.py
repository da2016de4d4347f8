"""Opening the database that a URL names: SQLite here, PostgreSQL in `postgresql.py`.

SQLite is opened so that what was committed stays committed and several processes of one machine can
share the file: WAL journal; `synchronous=FULL`, since in WAL mode NORMAL may lose the last commits on
a power cut, and a lost row is a lost private key whose public half IVS already holds; foreign keys
enforced; at most 5 seconds of waiting for another writer.

Python's sqlite3 begins a transaction only at its first INSERT, UPDATE or DELETE. A transaction that
writes must therefore write first and read afterwards, which is also what PostgreSQL's row locks want.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tokensvc.errors import ConfigurationError
from tokensvc.store.checkpoints import BACKSTOP_PAGES
from tokensvc.store.database_file import DatabaseFile
from tokensvc.store.outside import execute_outside
from tokensvc.store.postgresql import DatabaseLimits, is_postgresql, open_postgresql_engine
from tokensvc.store.turns import connect_in_turns, readable_text

__all__ = ["open_engine", "open_migration_engine", "open_writer_engine", "unsynced"]

_SYNCED: Final = "PRAGMA synchronous=FULL"

LOCK_TIMEOUT_SECONDS: Final = 5.0
POOL_TIMEOUT_SECONDS: Final = 5.0
POOL_SIZE: Final = 5
"""Connections of one process; SQLite takes one writer at a time, so more would only queue."""

CHECKPOINT_PAGES: Final = 4_000
"""Of 4 KiB in the journal before they are copied into the database. The ledger's indexes dirty the same
pages again and again; copied once in 16 MB, not in 4 MB, that is 20 to 30 % more rows a second."""
WRITER_CACHE_KIB: Final = 6_144
"""Page cache of a process's writer: SQLite's 2 MB do not hold the paths into the ledger's indexes, and
with a million rows a commit then reads more than it writes. Measured: a row takes 12 % more processor time
with 2 MB, 2 % more with 4; 6 are as good as 8, 16 and 64, since a leaf of an index is not met again before
it leaves."""


def open_engine(url: str, limits: DatabaseLimits | None = None) -> AsyncEngine:
    """Return an engine for the service's work; it connects with its first statement.

    Never creates a database. `limits` are for PostgreSQL. Raises ConfigurationError where the URL is
    of no known kind or names a file that is missing or may not be read and written.
    """
    if is_postgresql(url):
        return open_postgresql_engine(url, limits or DatabaseLimits())
    parsed = _parse(url)
    path = _database_path(parsed)
    if _mode(path) is None:
        raise ConfigurationError(f"There is no database at {path}: run `tokensvc db upgrade`.")
    _check_file(path)
    engine = create_async_engine(
        parsed.set(drivername="sqlite+aiosqlite"),
        async_creator=partial(connect_in_turns, _connecting_to(path)),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "connect", _prepare_connection)
    return engine


def open_migration_engine(url: str) -> Engine:
    """Return a blocking engine on SQLite whose transactions hold the write lock from their first moment.

    A missing SQLite file is created, readable and writable by its owner only. Raises
    ConfigurationError as `open_engine` does, and where the folder is missing or not writable.
    """
    parsed = _parse(url)
    path = _database_path(parsed)
    if _mode(path) is None:
        _create_file(path)
    _check_file(path)
    engine = create_engine(
        parsed.set(drivername="sqlite+pysqlite"),
        creator=_connecting_to(path),
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_migration_connection)
    event.listen(engine, "begin", _begin_immediately)
    return engine


def open_writer_engine(engine: AsyncEngine) -> Engine:
    """Return a blocking engine with one connection to the SQLite database of `engine`.

    For one thread that writes; its transactions hold the write lock from their first moment.
    """
    writer = create_engine(
        engine.url.set(drivername="sqlite+pysqlite"),
        creator=_connecting_to(_database_path(engine.url)),
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(writer, "connect", _prepare_migration_connection)
    event.listen(writer, "connect", _prepare_writer)
    event.listen(writer, "begin", _begin_immediately)
    return writer


@contextmanager
def unsynced(connection: Connection) -> Iterator[None]:
    """Let what is committed inside wait for the disk until the next commit that does; SQLite's alone.

    `connection` is in no transaction, before and after. A connection that cannot be told to wait again
    is closed for good: nothing that must last is ever committed on it.
    """
    try:
        execute_outside(connection, "PRAGMA synchronous=NORMAL")
        yield
    finally:
        try:
            execute_outside(connection, _SYNCED)
        except BaseException:
            connection.invalidate()
            raise


def _connecting_to(path: Path) -> Callable[[], sqlite3.Connection]:
    return partial(DatabaseFile(path).connect, lock_seconds=LOCK_TIMEOUT_SECONDS)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text may hold a password, so neither it nor the parser's error is repeated.
        raise ConfigurationError(
            "The database URL does not parse; it looks like sqlite:////path/to/file.db"
            " or postgresql://user@host/name."
        ) from None
    if parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(
            f"Databases of kind {parsed.get_backend_name()} are not supported; sqlite and postgresql are."
        )
    return parsed


def _database_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigurationError("The database URL must name a file: sqlite:////path/to/file.db.")
    return Path(url.database)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"The database {path} cannot be opened: {error.strerror}."
        ) from error


def _create_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigurationError(
            f"The database {path} cannot be created: {error.strerror}."
        ) from error
    os.close(descriptor)


def _check_file(path: Path) -> None:
    mode = _mode(path)
    if mode is None or not stat.S_ISREG(mode):
        raise ConfigurationError(f"The database {path} is not a file.")
    # SQLite writes its journal beside the database, so the folder counts as well.
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"The database {path} cannot be opened: it and its folder must be writable."
        )


def _prepare_connection(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(_SYNCED)
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    finally:
        cursor.close()


def _prepare_migration_connection(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    _prepare_connection(connection, entry)
    # A transaction is begun by `_begin_immediately` alone, never by Python's sqlite3 on its own.
    connection.isolation_level = None


def _prepare_writer(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # It reads little, mostly in the middle of a transaction, and cannot read the same again.
    connection.text_factory = readable_text
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
        # A checkpointer copies the journal beside its commits (`checkpoints.py`).
        cursor.execute(f"PRAGMA wal_autocheckpoint={BACKSTOP_PAGES}")
    finally:
        cursor.close()


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
