"""Write transactions of one busy writer, off the event loop.

A writer such as the ledger's hands over plain functions that take a SQLAlchemy `Connection`; each runs
in one transaction, one after the other.

On SQLite they run on a connection of their own in a thread of their own, which takes the write lock
at once (BEGIN IMMEDIATE), so that they may read before they write. On PostgreSQL they run on connections
of the pool, at the same time where several ask. What one of them reads another may then change before it
is written: row locks (`FOR UPDATE`, or an UPDATE first) are for that. One that the server has ended for
another's sake (a deadlock) runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.store.checkpoints import Checkpointer, Lend
from tokensvc.store.database_file import DatabaseFile
from tokensvc.store.engine import open_writer_engine, unsynced
from tokensvc.store.faults import sqlstate_of, store_faults, write_faults
from tokensvc.store.outside import Alone
from tokensvc.store.sqlstates import RETRIED
from tokensvc.store.work_thread import WorkThread

__all__ = ["Transactions", "open_transactions"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

MAX_SECONDS: Final = 15.0
"""Of waiting for a transaction on SQLite; PostgreSQL's have limits of their own (`DatabaseLimits`)."""

MAX_ATTEMPTS: Final = 4
"""Of a transaction that a deadlock, or a conflict of the same kind, has ended."""


class Transactions(Protocol):
    """Runs write transactions one after the other; belongs to one event loop."""

    async def run(
        self, operation: str, work: Callable[[Connection], T], *, may_be_lost: bool = False
    ) -> T:
        """Run `work` in a transaction and return what it returns, once that is committed.

        `work` may run more than once, each time from the start. `operation` says in words what is
        tried; it goes to the log. Raises StoreUnavailableError where the database does not take it, or
        not in time, and StoreRefusedError where a value is at fault. Whoever is cancelled, or told that
        it was not in time, does not learn whether the transaction was committed.

        With `may_be_lost` nobody waits for the disk: the transaction is on it with the next one that is
        waited for, and a power cut before that undoes it. It is for what would be done again then.
        """
        ...

    async def aclose(self) -> None:
        """Wait for the transaction under way, and let the connection go."""
        ...


def open_transactions(engine: AsyncEngine, *, owned: bool = False) -> Transactions:
    """Return a writer's transactions on the database of `engine`; nothing connects yet.

    An `owned` engine is closed with them.
    """
    if engine.dialect.name == "sqlite":
        file = DatabaseFile(Path(str(engine.url.database)))
        return _ThreadTransactions(file, open_writer_engine(engine), open_writer_engine(engine))
    return _PooledTransactions(engine, owned=owned)


class _ThreadTransactions:
    def __init__(self, file: DatabaseFile, engine: Engine, for_checkpoints: Engine) -> None:
        self._file = file
        self._engine = engine
        self._checkpointer = Checkpointer(for_checkpoints, self._between_commits)
        self._thread = WorkThread("store-writer")
        self._connection: Connection | None = None

    async def run(
        self, operation: str, work: Callable[[Connection], T], *, may_be_lost: bool = False
    ) -> T:
        # A disk that hangs holds up the thread, which cannot be helped; not everybody who waits for it.
        with store_faults(operation):
            return await self._thread.run(MAX_SECONDS, self._run, operation, work, may_be_lost)

    def _run(self, operation: str, work: Callable[[Connection], T], may_be_lost: bool) -> T:
        # A commit into a file that is gone is lost, and the journal may be another database's by then.
        self._file.require_in_place()
        with write_faults(operation), self._kept() as connection:
            if may_be_lost:
                with unsynced(connection):
                    result = _done(work, connection)
            else:
                result = _done(work, connection)
            self._file.require_in_place()
        self._checkpointer.note_commit()
        return result

    @contextmanager
    def _kept(self) -> Iterator[Connection]:
        """Lend the thread's connection, which is taken from its engine anew after an error."""
        # To take it and give it back for each transaction costs as much as two rows of the ledger.
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            yield self._connection
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        kept, self._connection = self._connection, None
        if kept is not None:
            kept.close()

    def _between_commits(self, copy: Callable[[Lend], object]) -> None:
        self._thread.put(copy, self._kept)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._checkpointer.close)
        try:
            await self._thread.run(MAX_SECONDS, self._close)
        except TimeoutError:
            # The commit that hangs ends with the process, as if that were killed.
            _log.error("store_writer_hangs", seconds=MAX_SECONDS)
        self._thread.end()

    def _close(self) -> None:
        self._let_go()
        self._engine.dispose()


def _done(work: Callable[[Connection], T], connection: Connection) -> T:
    """Do the work in a transaction on SQLite, whose statement it is where one is enough."""
    if isinstance(work, Alone) and (done := work.done_alone(connection)) is not None:
        return cast("T", done[0])
    with connection.begin():
        return work(connection)


class _PooledTransactions:
    def __init__(self, engine: AsyncEngine, *, owned: bool) -> None:
        self._engine = engine
        self._owned = owned

    async def run(
        self, operation: str, work: Callable[[Connection], T], *, may_be_lost: bool = False
    ) -> T:
        done = partial(_unsynced_on_postgresql, work) if may_be_lost else work
        with write_faults(operation):
            for _ in range(MAX_ATTEMPTS - 1):
                try:
                    return await self._run(done)
                except DBAPIError as error:
                    if sqlstate_of(error) not in RETRIED:
                        raise
                    _log.info("transaction_repeated", operation=operation)
            return await self._run(done)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def aclose(self) -> None:
        """Close an engine that is owned; any other is its owner's."""
        if self._owned:
            await self._engine.dispose()


def _unsynced_on_postgresql(work: Callable[[Connection], T], connection: Connection) -> T:
    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
    return work(connection)
