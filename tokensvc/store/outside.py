"""Statements on SQLite that SQLAlchemy begins no transaction for: it would with each of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["execute_outside"]


def execute_outside(
    connection: Connection, statement: str, values: Sequence[object] = ()
) -> tuple[Any, ...] | None:
    """Execute a statement on `connection`, which is in no transaction, and return its first row.

    It is a transaction by itself, where it is one at all. Raises DBAPIError as SQLAlchemy does.
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
