"""Statements on SQLite that SQLAlchemy begins no transaction for, as it would with each of its own.

A BEGIN and a COMMIT around a statement cost little themselves, but the thread gives up the interpreter
for each, and beside a busy event loop waits for it again. A statement that is all of a transaction is one
by itself.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["Alone", "execute_outside"]

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


def execute_outside(
    connection: Connection, statement: str, values: Sequence[object] = ()
) -> tuple[Any, ...] | None:
    """Execute a statement on `connection`, which is in no transaction, and return the first row it gives.

    Raises DBAPIError.
    """
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement, values)
        row: tuple[Any, ...] | None = cursor.fetchone()
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, hide_parameters=True
        ) from error
    finally:
        cursor.close()
    return row
