"""Statements on SQLite in one turn of the driver's thread each.

aiosqlite has a thread for each connection and hands it every step: make a cursor, execute, fetch, close
the cursor, roll back. A step is a message to the thread and one back, 30 us of processor time, and all
five take as long as SQLite takes to find fifty rows. Here one step does all of it, and what there is
nothing to do for, a rollback where no transaction is open, is no step.

All rows are fetched at once, as SQLAlchemy does unless it is told to stream, which nothing here does.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import aiosqlite
import structlog

__all__ = ["connect_in_turns", "readable_text"]


async def connect_in_turns(connect: Callable[[], sqlite3.Connection]) -> aiosqlite.Connection:
    """Return the connection that `connect` makes, with statements that take one turn each."""
    return await _Connection(connect, iter_chunk_size=1)


_log = structlog.get_logger(__name__)


class _Came(NamedTuple):
    """What came of a statement."""

    rows: list[Any]
    description: Any
    rowcount: int
    lastrowid: int | None


class _Connection(aiosqlite.Connection):
    """What SQLAlchemy asks of aiosqlite's, in fewer turns. One task uses it at a time."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int) -> None:
        super().__init__(connector, iter_chunk_size)
        # Whoever ends the process does not wait for a connection that was not closed.
        self._thread.daemon = True
        self._abandoned = False
        """Whether a step may be under way for which nobody waits any more."""

    def cursor(self) -> Any:
        return _Cursor(self)

    async def commit(self) -> None:
        if self._abandoned or self.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        if self._abandoned or self.in_transaction:
            await super().rollback()

    async def turn(self, step: Literal["execute", "executemany"], *given: Any) -> _Came:
        """Let the thread take a cursor through `step` and to its end."""
        came: _Came = await self._execute(self._take, step, *given)
        return came

    def _take(self, step: str, *given: Any) -> _Came:
        cursor = self._conn.cursor()
        try:
            getattr(cursor, step)(*given)
            try:
                rows = cursor.fetchall()
            except sqlite3.OperationalError as error:
                if step != "execute" or "decode to UTF-8" not in str(error) or self.in_transaction:
                    raise
                # Not from the start, since it takes longer.
                self._conn.text_factory = readable_text
                cursor.execute(*given)
                rows = cursor.fetchall()
            return _Came(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
        finally:
            cursor.close()

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            result = await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._abandoned = True
            raise
        # The thread takes one step after the other, so those before this one are done as well.
        self._abandoned = False
        return result


def readable_text(raw: bytes) -> str:
    """Return a text of SQLite's as far as it can be read: a damaged one must not hide all others."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        _log.error("damaged_text_in_database")
        return raw.decode("utf-8", "replace")


class _Cursor:
    """A cursor for one statement at a time, which outlives what SQLite keeps for it."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._came = _Came([], None, -1, None)

    async def __aenter__(self) -> _Cursor:
        return self

    @property
    def description(self) -> Any:
        return self._came.description

    @property
    def rowcount(self) -> int:
        return self._came.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._came.lastrowid

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._came = await self._connection.turn("execute", statement, values)

    async def executemany(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        self._came = await self._connection.turn("executemany", statement, values)

    async def fetchall(self) -> list[Any]:
        return self._came.rows

    async def close(self) -> None:
        """Nothing is open between two statements."""
