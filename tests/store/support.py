"""Databases to break, and their schema as plain values."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.store.transactions import Transactions


class Store(NamedTuple):
    """A new database on SQLite, and what writes it."""

    path: Path
    engine: AsyncEngine
    transactions: Transactions


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def schema_of(connection: Connection) -> dict[str, Any]:
    """Return all that the database says of its tables, Alembic's own apart."""
    inspector = inspect(connection)

    def by_name(items: list[Any]) -> list[Any]:
        return sorted((dict(item) for item in items), key=lambda item: str(item["name"]))

    return {
        table: {
            "columns": [
                {**column, "type": repr(column["type"])} for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": by_name(inspector.get_foreign_keys(table)),
            "unique": by_name(inspector.get_unique_constraints(table)),
            "indexes": [_as_text(index) for index in by_name(inspector.get_indexes(table))],
            "checks": by_name(inspector.get_check_constraints(table)),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def _as_text(index: dict[str, Any]) -> dict[str, Any]:
    # A partial index's condition is an expression, which equals only itself.
    options = {name: str(option) for name, option in index.get("dialect_options", {}).items()}
    return {**index, "dialect_options": options}


def tables_of(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        connection.close()
    return {name for (name,) in rows}
