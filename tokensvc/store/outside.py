"""Statements on SQLite that SQLAlchemy begins no transaction for, as it would with each of its own.

A BEGIN and a COMMIT around a statement cost little themselves, but the thread gives up the interpreter
for each, and beside a busy event loop waits for it again. A statement that is all of a transaction is one
by itself.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection, Delete
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["Alone", "Outcome", "delete_outside", "execute_outside"]

T = TypeVar("T")


class Alone(ABC, Generic[T]):
    """Work for `Transactions.run` that SQLite can do in one statement."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, connection: Connection) -> T:
        """Do the work in the transaction that `connection` is in."""

    @abstractmethod
    def done_alone(self, connection: Connection) -> tuple[T] | None:
        """Do the work where one statement does it, and return what came of it; else None. SQLite's alone.

        `connection` is in no transaction, and its driver begins none.
        """


class Outcome(NamedTuple):
    """The first row that a statement gave, and how many rows it changed."""

    row: tuple[Any, ...] | None
    changed: int


def execute_outside(
    connection: Connection, statement: str, values: Sequence[object] = ()
) -> Outcome:
    """Execute a statement on `connection`, which is in no transaction; raises DBAPIError."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement, values)
        outcome = Outcome(cursor.fetchone(), cursor.rowcount)
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True
        ) from error
    finally:
        cursor.close()
    return outcome


def delete_outside(connection: Connection, statement: Delete, values: Mapping[str, object]) -> int:
    """Do the same with a DELETE of SQLAlchemy's, given its parameters; return how many rows are gone."""
    compiled = _compiled(statement)
    given = compiled.construct_params(dict(values))
    in_order = [given[name] for name in compiled.positiontup or ()]
    return execute_outside(connection, compiled.string, in_order).changed


@lru_cache(maxsize=16)
def _compiled(statement: Delete) -> SQLCompiler:
    return statement.compile(dialect=sqlite.dialect(paramstyle="qmark"))
