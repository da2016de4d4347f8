"""The janitor on SQLite, where another process may hold the one lock there is."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

from tests.ledger.support import NOW, make, row
from tokensvc.ledger.janitor import LedgerJanitor
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions

HELD_SECONDS = 0.1


async def test_waiting_for_another_process_s_lock_is_not_taken_for_its_own_work(tmp_path: Path):
    file = tmp_path / "ledger.db"
    url = f"sqlite+aiosqlite:///{file}"
    upgrade(url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
    writer = make(transactions, lambda: 0.0)
    writer.start()
    await writer.record([row(exp=NOW - 100 - n) for n in range(15)])

    loop, own_thread = asyncio.get_running_loop(), threading.current_thread()
    other = sqlite3.connect(file, isolation_level=None)
    held: list[bool] = []

    def monotonic() -> float:
        if threading.current_thread() is not own_thread:
            held.append(other.in_transaction)
        return 0.0

    async def sleep(_: float) -> None: ...

    janitor = LedgerJanitor(
        engine, transactions, retention=0, clock=lambda: NOW, sleep=sleep,
        monotonic=monotonic, slice_rows=10,
    )  # fmt: skip
    other.execute("BEGIN IMMEDIATE")
    loop.call_later(HELD_SECONDS, other.execute, "ROLLBACK")
    assert await janitor.sweep() == 15
    other.close()
    assert held == [False] * 4, "each of the two slices is timed from when it has the lock"
    await writer.aclose()
    await transactions.aclose()
    await engine.dispose()
