"""Transactions that wait for no disk, and those after them that do."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.store.tables import leases
from tokensvc.store.transactions import Transactions

# The tests' PostgreSQL waits for no disk at all; what a transaction says for itself is told apart.
QUESTIONS = {
    "sqlite": "SELECT synchronous = 1 FROM pragma_synchronous",
    "postgresql": "SELECT setting = 'off' AND source = 'session' FROM pg_settings"
    " WHERE name = 'synchronous_commit'",
}


def add(connection: Connection, name: str) -> bool:
    """Write a row, and tell whether the commit of it is to wait for the disk."""
    connection.execute(insert(leases).values(name=name, holder="it", fence=1, expires_at=1.0))
    question = QUESTIONS[connection.dialect.name]
    return not connection.exec_driver_sql(question).scalar_one()


async def test_only_what_may_be_lost_does_not_wait_for_the_disk(
    engine: AsyncEngine, transactions: Transactions
) -> None:
    assert await transactions.run("t", lambda one: add(one, "a"))
    assert not await transactions.run("t", lambda one: add(one, "b"), may_be_lost=True)
    assert await transactions.run("t", lambda one: add(one, "c"))

    def fail(connection: Connection) -> None:
        add(connection, "d")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await transactions.run("t", fail, may_be_lost=True)
    assert await transactions.run("t", lambda one: add(one, "e"))
    async with engine.connect() as connection:
        stored = (await connection.execute(select(leases.c.name))).scalars().all()
    assert sorted(stored) == ["a", "b", "c", "e"]
