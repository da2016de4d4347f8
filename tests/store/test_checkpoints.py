"""SQLite's journal is copied beside the commits and begun anew, whatever becomes of who does it."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from tokensvc.store import open_engine, upgrade
from tokensvc.store.checkpoints import (
    BACKSTOP_PAGES,
    FEW_PAGES,
    MAX_PASSES,
    NICE,
    RESTART_PAGES,
    Checkpointer,
    Lend,
)
from tokensvc.store.checkpoints import _checkpoint as checkpoint_once
from tokensvc.store.engine import open_writer_engine
from tokensvc.store.transactions import Transactions, open_transactions

PAGE = 4096


def write(pages: int) -> str:
    """Return SQL that fills so many pages."""
    return (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        f" WHERE i < {pages}) INSERT INTO filling SELECT zeroblob({PAGE}) FROM n"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE filling (it BLOB)")
    connection.close()
    return path


def size_of(path: Path) -> int:
    """Return the file's bytes."""
    return path.stat().st_size


def journal_pages(path: Path) -> int:
    """Return how many pages are in the journal that were not copied yet."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        before = path.stat().st_size
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return (path.stat().st_size - before) // PAGE
    finally:
        connection.close()


def priority() -> int:
    """Return the nice value of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@asynccontextmanager
async def copied_at_once(path: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Transactions]:
    """Lend transactions whose journal is copied as soon as one of them is committed."""
    eager = partial(Checkpointer, interval=0.0)
    patch.setattr("tokensvc.store.transactions.Checkpointer", eager)
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    transactions = open_transactions(engine)
    yield transactions
    await transactions.aclose()
    await engine.dispose()


async def test_a_commit_copies_nothing_though_the_journal_is_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpointer, "note_commit", lambda _: None)
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    transactions = open_transactions(engine)

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(write(6_000))

    before = size_of(path)
    await transactions.run("fill", work)
    assert size_of(path) == before
    assert BACKSTOP_PAGES > 6_000
    await transactions.aclose()
    await engine.dispose()


async def test_what_is_copied_is_begun_anew_by_the_next_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody else copies, who would be counted too.
    monkeypatch.setattr(Checkpointer, "note_commit", lambda _: None)
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    transactions = open_transactions(engine)
    await transactions.run(
        "fill", lambda one: one.exec_driver_sql(write(RESTART_PAGES + 500)).close()
    )
    journal = path.with_name(path.name + "-wal")
    long = size_of(journal)
    assert long > RESTART_PAGES * PAGE

    rests: list[object] = []
    sut = Checkpointer(open_writer_engine(engine), rests.append)
    passes = 0

    def checkpoint(lend: Lend) -> int:
        nonlocal passes
        pages = checkpoint_once(lend)
        passes += 1
        if passes == 1:
            with sqlite3.connect(path) as connection:
                connection.execute(write(10))
            connection.close()
        return pages

    monkeypatch.setattr("tokensvc.store.checkpoints._checkpoint", checkpoint)
    sut.copy()
    # All is in the database, what came meanwhile too, and the writer is asked for the rest of that.
    assert passes == 2
    assert journal_pages(path) == 0
    assert len(rests) == 1
    await transactions.run("fill", lambda one: one.exec_driver_sql(write(10)).close())
    assert size_of(journal) == long
    sut.close()
    await transactions.aclose()
    await engine.dispose()


@pytest.mark.parametrize(
    ("lengths", "passes"),
    [
        ([RESTART_PAGES - 1], 1),
        ([RESTART_PAGES, RESTART_PAGES + FEW_PAGES], 2),
        ([8_000, 12_000, 13_000, 13_201, 13_300, 13_300], 5),
        ([8_000, 9_000, 10_000, 11_000, 12_000, 13_000], MAX_PASSES),
        # Another process began the journal anew meanwhile.
        ([9_000, 10], 2),
    ],
)
async def test_the_disk_has_what_was_copied_before_the_writer_copies_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int], passes: int
) -> None:
    """SQLite would wait for it in the writer's turn, for which commits wait."""
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    found = iter(lengths)
    done: list[str] = []

    def checkpoint(lend: Lend) -> int:
        done.append("pass")
        return next(found)

    def sync(descriptor: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        done.append("sync")

    monkeypatch.setattr("tokensvc.store.checkpoints._checkpoint", checkpoint)
    monkeypatch.setattr("tokensvc.store.checkpoints._sync", sync)
    sut = Checkpointer(open_writer_engine(engine), lambda _: done.append("writer"))
    sut.copy()
    after_each = ["pass", "sync"] * passes
    assert done == (["pass"] if passes == 1 else [*after_each, "writer"])
    sut.close()
    await engine.dispose()


async def test_every_commit_has_its_journal_copied_by_another_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(Checkpointer, "copy", lambda _: copied.put(threading.get_ident()))
    async with copied_at_once(path, monkeypatch) as transactions:
        for _ in range(3):
            writer = await transactions.run("fill", lambda _: threading.get_ident())
            assert await asyncio.to_thread(copied.get, timeout=60) != writer
    assert copied.empty()


async def test_copying_gives_way_to_the_other_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(Checkpointer, "copy", lambda _: found.put(priority()))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    async with copied_at_once(path, monkeypatch) as transactions:
        writers = await transactions.run("fill", lambda _: priority())
        copier = max(own, NICE) if sys.platform == "linux" else own
        assert await asyncio.to_thread(found.get, timeout=60) == copier
    assert writers == own == os.getpriority(os.PRIO_PROCESS, 0)


async def test_a_system_that_lets_no_thread_give_way_is_told_of_and_all_is_copied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(Checkpointer, "copy", lambda _: copied.put(1))

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("tokensvc.store.checkpoints.sys.platform", "linux")
    monkeypatch.setattr("tokensvc.store.checkpoints.os.setpriority", refuse)
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    sut = Checkpointer(open_writer_engine(engine), lambda _: None, interval=0.0)
    with capture_logs() as logs:
        sut.note_commit()
        await asyncio.to_thread(copied.get, timeout=60)
    assert logs == [
        {
            "event": "checkpoints_at_full_priority",
            "reason": "Operation not permitted",
            "log_level": "info",
        }
    ]
    sut.close()
    await engine.dispose()


async def test_a_short_journal_is_copied_and_goes_on(path: Path) -> None:
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    rests: list[object] = []
    sut = Checkpointer(open_writer_engine(engine), rests.append)
    with sqlite3.connect(path) as connection:
        connection.execute(write(100))
    sut.copy()
    assert journal_pages(path) == 0
    assert rests == []
    connection.close()
    sut.close()
    await engine.dispose()


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("PRAGMA", None, sqlite3.OperationalError("disk I/O error")),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_a_journal_that_cannot_be_copied_is_told_once(path: Path, error: Exception) -> None:
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    sut = Checkpointer(open_writer_engine(engine), lambda _: None)

    def fail() -> None:
        raise error

    with capture_logs() as logs:
        sut._told(fail)
        sut._told(fail)
        sut._told(sut.copy)
        sut._told(fail)
    assert [log["event"] for log in logs] == ["journal_not_copied"] * 2
    sut.close()


def test_whoever_closes_just_before_the_thread_begins_to_copy_waits_for_nothing(path: Path) -> None:
    sut = Checkpointer(open_writer_engine(open_engine(f"sqlite+aiosqlite:///{path}")), print)

    class SetOnceWaitedFor(threading.Event):
        """What `close` sets in the moment after it was looked at."""

        def wait(self, timeout: float | None = None) -> bool:
            was_set = self.is_set()
            self.set()
            sut._written.set()
            return was_set

    sut._ended = SetOnceWaitedFor()
    sut.note_commit()
    assert sut._thread is not None
    sut._thread.join(60)
    assert not sut._thread.is_alive()
    sut.close()


def test_a_disk_that_hangs_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokensvc.store.checkpoints.CLOSE_SECONDS", 0.01)
    engine = open_writer_engine(open_engine(f"sqlite+aiosqlite:///{path}"))
    sut = Checkpointer(engine, print, interval=0.0)
    hangs, goes_on = threading.Event(), threading.Event()

    def copy() -> None:
        hangs.set()
        goes_on.wait()

    monkeypatch.setattr(sut, "copy", copy)
    sut.note_commit()
    assert hangs.wait(60)
    with capture_logs() as logs:
        sut.close()
    assert [log["event"] for log in logs] == ["store_checkpoints_hang"]
    goes_on.set()
    # The thread ends by itself, and is not begun again.
    assert sut._thread is not None
    sut._thread.join(60)
    assert not sut._thread.is_alive()
    sut.close()
