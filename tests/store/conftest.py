"""Databases of a test of its own: `store` is on SQLite, `url` and `engine` are of one on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.postgres import PostgresServer
from tests.store.support import Store, url_of
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    path = tmp_path / "a.db"
    await asyncio.to_thread(upgrade, url_of(path))
    engine = open_engine(url_of(path))
    transactions = open_transactions(engine)
    yield Store(path, engine, transactions)
    await transactions.aclose()
    await engine.dispose()


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.database()
    yield url
    postgres.release(url)


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(url)
    yield engine
    await engine.dispose()
