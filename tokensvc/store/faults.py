"""The database's errors as ours: StoreUnavailableError, in words an operator can act on.

The public detail names the fault and never the statement or its parameters, which may hold a sealed
key or the hash of a secret.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tokensvc.errors import StoreUnavailableError

__all__ = ["store_faults"]

# Primary result codes, https://www.sqlite.org/rescode.html; extended codes carry them in the low byte.
_SQLITE_FAULTS: Final[dict[int, str]] = {
    sqlite3.SQLITE_BUSY: "The database is locked by another process.",
    sqlite3.SQLITE_LOCKED: "The database is locked by another connection.",
    sqlite3.SQLITE_FULL: "The disk that holds the database is full.",
    sqlite3.SQLITE_READONLY: "The database is read-only.",
    sqlite3.SQLITE_IOERR: "The disk that holds the database fails.",
    sqlite3.SQLITE_CORRUPT: "The database is damaged.",
    sqlite3.SQLITE_NOTADB: "The database file is not a database.",
    sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened.",
    sqlite3.SQLITE_PERM: "The database file may not be opened.",
}
_LOW_BYTE: Final = 0xFF


@contextmanager
def store_faults(operation: str) -> Iterator[None]:
    """Raise StoreUnavailableError for whatever SQLAlchemy raises inside.

    `operation` says in words what was tried (`save key ring`); it goes to the log.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreUnavailableError(
            _in_words(error), operation=operation, error=type(error).__name__
        ) from error


def _in_words(error: SQLAlchemyError) -> str:
    if isinstance(error, PoolTimeoutError):
        return "All database connections are busy."
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "sqlite_errorcode", None)
        if isinstance(code, int):
            return _SQLITE_FAULTS.get(code & _LOW_BYTE, "The database refuses the statement.")
    return "The database does not answer."
