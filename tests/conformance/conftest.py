"""The databases that every store must work on; a further kind is one more entry of `KINDS`.

A kind is a generator that takes the test's request and yields a maker of databases: each call of the
maker gives the URL of one that is brought up to date and empty. A test that wants many says when it is
done with one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.callers.support import Clock
from tests.postgres import PostgresServer
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import Transactions, open_transactions


class MakeDatabase(Protocol):
    examples: int
    """Histories that a test of any history tries; a database with a server behind it is slower."""

    def __call__(self) -> str: ...

    def release(self, url: str) -> None: ...


class SqliteFiles:
    examples = 25

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = count()

    def __call__(self) -> str:
        url = f"sqlite+aiosqlite:///{self.folder / f'{next(self.numbers)}.db'}"
        upgrade(url)
        return url

    def release(self, url: str) -> None:
        """The file goes with its folder."""


class PostgresDatabases:
    examples = 6

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.used: list[str] = []

    def __call__(self) -> str:
        self.used.append(self.server.database())
        return self.used[-1]

    def release(self, url: str) -> None:
        self.used.remove(url)
        self.server.release(url)


def sqlite(request: pytest.FixtureRequest) -> Iterator[MakeDatabase]:
    yield SqliteFiles(request.getfixturevalue("tmp_path"))


def postgresql(request: pytest.FixtureRequest) -> Iterator[MakeDatabase]:
    databases = PostgresDatabases(request.getfixturevalue("postgres"))
    yield databases
    for url in tuple(databases.used):
        databases.release(url)


KINDS: dict[str, Callable[[pytest.FixtureRequest], Iterator[MakeDatabase]]] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
}


@pytest.fixture(params=KINDS)
def make_database(request: pytest.FixtureRequest) -> Iterator[MakeDatabase]:
    with contextmanager(KINDS[request.param])(request) as make:
        yield make


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    return make_database()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def transactions(engine: AsyncEngine) -> AsyncIterator[Transactions]:
    transactions = open_transactions(engine)
    yield transactions
    await transactions.aclose()


@pytest.fixture
async def second_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Another replica's way to the same database."""
    engine = open_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()
