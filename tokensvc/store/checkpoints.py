"""Copies SQLite's journal into the database beside the commits, not in one of them.

SQLite does that work (a checkpoint, sqlite.org/wal.html) in whichever commit makes the journal long enough:
4,000 pages, 10 ms and more, for which everybody waits whose token is in that commit or the next. Here a
thread with a connection of its own copies what is there several times a second, which holds up no writer.
What was written meanwhile is too little to be noticed; the writer copies it between two commits, and the
next one begins the journal anew. If this thread does not keep up, or is gone, the writer copies all, as
it would without it.

SQLite waits for the disk only when it has copied the last page, and so not while commits go on: the writer,
who copies that one, would wait for all that was copied before, a tenth of a second where rows are deleted
all over the file. So this thread has the system write it, before the writer's turn.

Where all threads share one core, its 1.5 ms of copying would still be in the way of whoever commits then:
on Linux it takes the core when the others leave it (setpriority(2): a thread has a nice value of its own).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tokensvc.store.outside import execute_outside

__all__ = ["BACKSTOP_PAGES", "NICE", "Checkpointer", "Lend"]

BACKSTOP_PAGES: Final = 32_000
"""Of 4 KiB: the length of the journal at which a commit copies it all the same, 128 MB."""

INTERVAL_SECONDS: Final = 0.25
RESTART_PAGES: Final = 8_000
"""A shorter journal, 32 MB, is not begun anew: the writer has to copy its last pages then, for which commits
wait. Pages that are written again and again are copied once, too."""

FEW_PAGES: Final = 200
MAX_PASSES: Final = 5
"""The writer's turn comes after a pass in which no more than that were written meanwhile, but after so many
passes anyway; each takes less long than the one before, since it has only that to copy."""

CLOSE_SECONDS: Final = 15.0

NICE: Final = 10
"""A tenth of the share of another thread: many times what it needs where they take all that they get."""

Lend: TypeAlias = Callable[[], AbstractContextManager[Connection]]
"""Lends a connection that is in no transaction."""

_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)
"""Not on every system is there one that leaves out the file's times."""

_log = structlog.get_logger(__name__)


class Checkpointer:
    """Runs beside one writer; `engine` is its own, and is closed with it.

    `between_commits` has the writer do something when it is in no transaction, and returns at once; who
    does it is lent the writer's connection.
    """

    def __init__(
        self,
        engine: Engine,
        between_commits: Callable[[Callable[[Lend], object]], object],
        *,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._engine = engine
        self._between_commits = between_commits
        self._interval = interval
        self._written = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False
        self._descriptor: int | None = None

    def note_commit(self) -> None:
        """Take note that there is something to copy; starts the thread at the first. For the writer's."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="store-checkpoints", daemon=True)
            thread.start()
            self._thread = thread
        self._written.set()

    def close(self) -> None:
        """End the thread, after the copying that is under way; blocks. What is left is copied later.

        A disk that hangs is waited for CLOSE_SECONDS; then the thread ends with the process.
        """
        self._ended.set()
        self._written.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                _log.error("store_checkpoints_hang", seconds=CLOSE_SECONDS)
                return
        self._engine.dispose()

    def copy(self) -> None:
        """Copy what is in the journal now; what comes meanwhile, if it is long, between two commits."""
        pages = _checkpoint(self._engine.connect)
        if pages < RESTART_PAGES:
            return
        # Most of what came meanwhile as well, so that little is left that holds up commits.
        for _ in range(MAX_PASSES - 1):
            self._have_written()
            before, pages = pages, _checkpoint(self._engine.connect)
            if pages - before <= FEW_PAGES:
                break
        self._have_written()
        if not self._ended.is_set():
            self._between_commits(self._copy_rest)

    def _have_written(self) -> None:
        """Wait until the disk has all that is in the database's file."""
        if self._descriptor is None:
            # A descriptor of its own: whoever waits is told of a fault once, and SQLite is to hear of it
            # too. It is never closed, since with it the process would lose its locks on the file, whoever
            # holds them (fcntl(2), "Record locks").
            self._descriptor = os.open(str(self._engine.url.database), os.O_RDONLY)
        _sync(self._descriptor)

    def _copy_rest(self, lend: Lend) -> None:
        self._told(lambda: _checkpoint(lend))

    def _run(self) -> None:
        _give_way()
        while True:
            self._written.wait()
            self._ended.wait(self._interval)
            self._written.clear()
            # Looked at after that: `close` has it set before `_written`, which may just have been undone.
            if self._ended.is_set():
                return
            self._told(self.copy)

    def _told(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (SQLAlchemyError, OSError) as error:
            # The journal only grows, up to where a commit copies it and says what is wrong.
            if not self._failing:
                _log.warning("journal_not_copied", reason=type(error).__name__)
            self._failing = True
        else:
            self._failing = False


def _give_way() -> None:
    """Let the process's other threads go first; on Linux alone is a thread's priority its own."""
    if sys.platform != "linux":
        return
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except OSError as error:
        # As where the system calls of a service are filtered; or it is nicer than that as a whole.
        _log.info("checkpoints_at_full_priority", reason=error.strerror)


def _checkpoint(lend: Lend) -> int:
    """Copy the journal as far as nobody is in the way; return its length in pages, 0 if it is busy."""
    with lend() as connection:
        answer = execute_outside(connection, "PRAGMA wal_checkpoint(PASSIVE)")
    # Whether somebody else is at it, the journal's pages, and how many of them are copied.
    return 0 if answer is None or answer[0] else int(answer[1])
