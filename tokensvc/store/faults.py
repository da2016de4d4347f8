"""The database's errors as ours: StoreUnavailableError, in words an operator can act on.

The public detail names the fault and never the statement or its parameters, which may hold a sealed
key or the hash of a secret. PostgreSQL's messages repeat values (`Key (name)=(x) already exists`), so
they are not chained to ours; the SQLSTATE is in the context.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NoReturn

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tokensvc.errors import StoreRefusedError, StoreUnavailableError
from tokensvc.store.sqlstates import VALUE_CLASSES, in_words

__all__ = ["sqlstate_of", "store_faults", "write_faults"]

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
RETRY_AFTER_SECONDS: Final = 1.0


class store_faults:  # noqa: N801 - used as a function
    """Raise StoreUnavailableError for whatever SQLAlchemy, or the way to the database, raises inside.

    `operation` says in words what was tried (`save key ring`); it goes to the log. On PostgreSQL a
    value that the database does not take is a StoreRefusedError.
    """

    __slots__ = ("_operation",)

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SQLAlchemyError):
            self._raise_for(error)
        elif isinstance(error, OSError):
            # Timeouts among them. asyncpg passes on what the network raises.
            raise StoreUnavailableError(
                "The database does not answer in time."
                if isinstance(error, TimeoutError)
                else "The connection to the database was lost.",
                retry_after=RETRY_AFTER_SECONDS,
                operation=self._operation,
                error=type(error).__name__,
            ) from error

    def _raise_for(self, error: SQLAlchemyError) -> NoReturn:
        operation = self._operation
        if not _is_postgresql(error):
            raise StoreUnavailableError(
                _in_words(error), operation=operation, error=type(error).__name__
            ) from error
        sqlstate = sqlstate_of(error)
        if sqlstate is not None and sqlstate.startswith(VALUE_CLASSES):
            raise _refused_value(operation, error) from None
        raise StoreUnavailableError(
            in_words(sqlstate),
            retry_after=RETRY_AFTER_SECONDS,
            operation=operation,
            error=type(error).__name__,
            sqlstate=sqlstate,
        ) from None


class write_faults(store_faults):  # noqa: N801 - used as a function
    """The same, and StoreRefusedError for a value that the database does not take, whichever it is."""

    __slots__ = ()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A lone surrogate or too large a number fails while it is bound, before the database sees it.
        if isinstance(error, (DataError, IntegrityError, UnicodeError, OverflowError)):
            # Not chained where PostgreSQL said it, as its message repeats the value.
            cause = None if sqlstate_of(error) else error
            raise _refused_value(self._operation, error) from cause
        super().__exit__(kind, error, trace)


def _refused_value(operation: str, error: BaseException) -> StoreRefusedError:
    """Return the error for a value that the database does not take; it does not say which value."""
    return StoreRefusedError(
        "The database refuses a value.",
        operation=operation,
        error=type(error).__name__,
        sqlstate=sqlstate_of(error),
    )


def sqlstate_of(error: BaseException) -> str | None:
    """Return PostgreSQL's code for an error, None where it has none (or comes from elsewhere)."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
    return sqlstate if isinstance(sqlstate, str) else None


def _is_postgresql(error: SQLAlchemyError) -> bool:
    return isinstance(error, DBAPIError) and hasattr(error.orig, "sqlstate")


def _in_words(error: SQLAlchemyError) -> str:
    if isinstance(error, PoolTimeoutError):
        return "All database connections are busy."
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "sqlite_errorcode", None)
        if isinstance(code, int):
            return _SQLITE_FAULTS.get(code & _LOW_BYTE, "The database refuses the statement.")
    return "The database does not answer."
