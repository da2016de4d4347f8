"""Leases and members on SQLite, which stores any type: one row that is damaged stops nobody."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from tests.store.support import Store
from tokensvc.store.leases import LeaseStore
from tokensvc.store.members import Members

NOW = 1_800_000_000.0


def damage(store: Store, column: str, name: str) -> None:
    with closing(sqlite3.connect(store.path)) as connection, connection:
        changed = connection.execute(
            f"UPDATE leases SET {column} = CAST(x'6261e36b' AS TEXT) WHERE name = ?", [name]
        )
        assert changed.rowcount == 1


@pytest.mark.parametrize("column", ["expires_at", "fence"])
async def test_a_damaged_lease_is_free(store: Store, column: str):
    leases = LeaseStore(store.engine, store.transactions)
    held = await leases.take("work", "a", seconds=20, now=NOW)
    assert held is not None
    damage(store, column, "work")
    now = NOW if column == "expires_at" else NOW + 20
    assert await leases.still_held(held) == (column == "expires_at")
    taken = await leases.take("work", "b", seconds=20, now=now)
    assert taken is not None
    assert await leases.still_held(taken)
    assert not await leases.still_held(held)
    assert await leases.take("work", "a", seconds=20, now=now) is None


async def test_a_damaged_member_is_counted_until_it_is_forgotten_and_breaks_no_beat(store: Store):
    seconds = 0.0
    mine, other = (Members(store.transactions, name, lambda: seconds) for name in ("a", "b"))
    assert await other.beat() == 1
    damage(store, "fence", "member:b")
    with capture_logs() as logs:
        assert await mine.beat() == 2
    assert [entry["event"] for entry in logs] == ["damaged_text_in_database"]
    for _ in range(4):
        seconds += 6
        counted = await mine.beat()
    assert counted == 1
    assert await other.beat() == 2, "it heals with the next beat of its own"
