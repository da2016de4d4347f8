"""Many rows in one statement.

It exists because of the interpreter's lock: sqlite3 gives it up and takes it back for every row of an
`executemany`, and beside a busy event loop each taking waits up to 5 ms. Measured here: 180 rows a second
with `executemany`, 30,000 with many rows in one statement. On PostgreSQL a column is one array, so that one
prepared statement does for any number of rows (docs/adr/0012-postgresql.md has the figures, beside those of
COPY).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, Final, TypeAlias

from sqlalchemy import Column, Connection, Float, Integer, LargeBinary, Table

from tokensvc.store.outside import Alone, execute_outside

__all__ = ["Insertion", "insert_absent", "insert_rows"]

ROWS_PER_STATEMENT: Final = 500
"""On PostgreSQL, whose driver encodes them on the event loop: 1 to 2 ms."""

_LENGTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
"""Rows that a statement on SQLite has room for. sqlite3 keeps the last statements prepared, 2 KB a row with
the values last bound to them: one of each length up to 64 took it 5 MB, and up to thousands a hundred. What
is left empty costs next to nothing. A table may have 100 columns: SQLite takes 32,766 parameters."""

_ROWS_OF_A_GROUP: Final = 8
"""With fewer rows that have something in common, statements for each such group cost more than they save."""


def insert_rows(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[object]],
    *,
    alike: tuple[str, ...] = (),
) -> None:
    """Insert rows whose values stand in the order of `columns`, many in one statement.

    Columns that are `alike`, two or more, have the same values in most of the rows: SQLite gets those once
    for all. Values go to the driver as they are: only for columns of text and numbers. When it raises,
    the transaction is at its end: SQLite has rolled it back, or it is to be. Rows are numbered in any order.
    """
    if connection.dialect.name == "postgresql":
        for insert, columns_of_some in _unnested(_unnest_statement(table, columns), rows):
            connection.exec_driver_sql(insert, columns_of_some)
        return
    for insert, values in _inserts(table, columns, rows, alike):
        connection.exec_driver_sql(insert, values)


@dataclass(frozen=True, slots=True)
class Insertion(Alone[None]):
    """A transaction that inserts rows, as `insert_rows` does, and nothing else; for `Transactions.run`."""

    table: Table
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    alike: tuple[str, ...] = ()

    def __call__(self, connection: Connection) -> None:
        """Insert the rows in the transaction that `connection` is in."""
        insert_rows(connection, self.table, self.columns, self.rows, alike=self.alike)

    def done_alone(self, connection: Connection) -> tuple[None] | None:
        """Insert the rows where one statement does it."""
        if len(self.rows) > _LENGTHS[-1]:
            return None
        found = list(_inserts(self.table, self.columns, self.rows, self.alike))
        if len(found) != 1:
            return None
        ((statement, values),) = found
        execute_outside(connection, statement, values)
        return (None,)


_Statement: TypeAlias = tuple[str, tuple[object, ...]]
_Picker: TypeAlias = Callable[[Sequence[object]], tuple[object, ...]]


def _inserts(
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[object]],
    alike: tuple[str, ...],
) -> Iterator[_Statement]:
    """Yield the statements that insert rows on SQLite, and the values of each."""
    if not alike or not rows:
        yield from _filled(partial(_values_statement, table, columns, ()), len(columns), rows)
        return
    of_all, of_each = _pickers(columns, alike)
    common_of = list(map(of_all, rows))
    kinds = dict.fromkeys(common_of)
    if len(kinds) > 1 and len(kinds) * _ROWS_OF_A_GROUP > len(rows):
        yield from _inserts(table, columns, rows, ())
        return
    each = tuple(name for name in columns if name not in alike)
    statement_of = partial(_values_statement, table, each, alike)
    for common in kinds:
        group = rows
        if len(kinds) > 1:
            group = [row for row, its in zip(rows, common_of, strict=True) if its == common]
        yield from _filled(statement_of, len(each), list(map(of_each, group)), common)


def _unnested(statement: str, rows: Sequence[Sequence[object]]) -> Iterator[_Statement]:
    """Yield a statement of PostgreSQL's for as many rows as it takes at once, with a list for each column."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        some = rows[start : start + ROWS_PER_STATEMENT]
        yield statement, tuple(map(list, zip(*some, strict=True)))


def _filled(
    statement_of: Callable[[int], str],
    width: int,
    rows: Sequence[Sequence[object]],
    common: tuple[object, ...] = (),
) -> Iterator[_Statement]:
    """Yield one statement for as many rows as fit; `statement_of` takes for how many it has room."""
    for start in range(0, len(rows), _LENGTHS[-1]):
        some = rows[start : start + _LENGTHS[-1]]
        room = _LENGTHS[bisect_left(_LENGTHS, len(some))]
        empty = (None,) * ((room - len(some)) * width)
        yield statement_of(room), (*common, *chain.from_iterable(some), *empty, len(some))


@lru_cache(maxsize=16)
def _pickers(columns: tuple[str, ...], alike: tuple[str, ...]) -> tuple[_Picker, _Picker]:
    """Return what takes of a row the columns that are alike, and the others."""
    others = (name for name in columns if name not in alike)
    return (
        itemgetter(*(columns.index(name) for name in alike)),
        itemgetter(*(columns.index(name) for name in others)),
    )


def _values(columns: tuple[str, ...], room: int, alike: tuple[str, ...] = ()) -> str:
    """Return what gives as many rows as its last parameter says, and has room for more."""
    row = f"({', '.join(['?'] * len(columns))})"
    result = ", ".join([*["?"] * len(alike), "*"])
    return f"SELECT {result} FROM (VALUES {', '.join([row] * room)}) LIMIT ?"  # noqa: S608


@lru_cache(maxsize=128)
def _values_statement(
    table: Table, columns: tuple[str, ...], alike: tuple[str, ...], room: int
) -> str:
    # Names of our own tables and columns; every value is a parameter. Without OR ROLLBACK, SQLite copies
    # each page aside before the statement changes it, so as to undo the statement alone; that took as
    # long as a third to a half of all else. Here a row that is refused undoes the transaction anyway.
    names = ", ".join((*alike, *columns))
    return f"INSERT OR ROLLBACK INTO {table.name} ({names}) {_values(columns, room, alike)}"


@lru_cache(maxsize=16)
def _unnest_statement(table: Table, columns: tuple[str, ...]) -> str:
    arrays = (
        f"${number}::{_array_type(table.c[name])}" for number, name in enumerate(columns, start=1)
    )
    # As above.
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM unnest({', '.join(arrays)})"  # noqa: S608
    )


def _array_type(column: Column[Any]) -> str:
    if isinstance(column.type, Integer):
        return "bigint[]"
    if isinstance(column.type, Float):
        return "float8[]"
    if isinstance(column.type, LargeBinary):
        return "bytea[]"
    # Not VARCHAR(n): a cast to that cuts what is too long, and says nothing.
    return "text[]"


def insert_absent(connection: Connection, table: Table, rows: Sequence[dict[str, object]]) -> int:
    """Insert the rows that break no unique constraint, and leave out the others (ON CONFLICT DO NOTHING).

    All of them have the same columns, two or more, of text, numbers and bytes, which the driver gets as they
    are. Where another transaction is about to insert the same key, PostgreSQL waits for its end. Returns
    how many were inserted. When it raises, the transaction is at its end, as with `insert_rows`.
    """
    # Many rows in one statement, as in `insert_rows`.
    columns = tuple(rows[0])
    values = list(map(itemgetter(*columns), rows))
    if connection.dialect.name == "postgresql":
        found = _unnested(f"{_unnest_statement(table, columns)} ON CONFLICT DO NOTHING", values)
    else:
        found = _filled(partial(_absent_statement, table, columns), len(columns), values)
    return sum(connection.exec_driver_sql(insert, of_some).rowcount for insert, of_some in found)


@lru_cache(maxsize=128)
def _absent_statement(table: Table, columns: tuple[str, ...], room: int) -> str:
    into = f"{table.name} ({', '.join(columns)})"
    # Names of our own tables and columns; every value is a parameter. OR ROLLBACK as above: for what else
    # is wrong with a row, such as no value where there must be one.
    return f"INSERT OR ROLLBACK INTO {into} {_values(columns, room)} ON CONFLICT DO NOTHING"
