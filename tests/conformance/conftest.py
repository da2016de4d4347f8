"""The databases that every store must work on; a further kind is one more entry of `KINDS`.

A kind is a function that takes a folder of the test's own and returns a maker of databases: each call
of the maker gives the URL of a new one, brought up to date and empty.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.callers.support import Clock
from tokensvc.store import open_engine, upgrade

MakeDatabase = Callable[[], str]


def sqlite(folder: Path) -> MakeDatabase:
    numbers = count()

    def make() -> str:
        url = f"sqlite+aiosqlite:///{folder / f'{next(numbers)}.db'}"
        upgrade(url)
        return url

    return make


KINDS: dict[str, Callable[[Path], MakeDatabase]] = {"sqlite": sqlite}


@pytest.fixture(params=KINDS)
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> MakeDatabase:
    return KINDS[request.param](tmp_path)


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    return make_database()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def second_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Another replica's way to the same database."""
    engine = open_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()
