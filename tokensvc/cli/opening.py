"""Opening what a command works on: the store, and nothing before it is known to be current."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from tokensvc.cli.auditing import audited

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tokensvc.settings import Settings

__all__ = ["open_store", "with_store"]

T = TypeVar("T")


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """Open the store; raises ConfigurationError where it is missing or its schema is old."""
    from tokensvc.http.database import open_database
    from tokensvc.store import ensure_current

    engine = open_database(settings)
    try:
        await ensure_current(engine)
        yield engine
    finally:
        await engine.dispose()


def with_store(work: Callable[[AsyncEngine, Settings], Awaitable[T]]) -> T:
    """Load the settings, open the store, do `work`, and return what it returns.

    The command is in the audit record."""
    from tokensvc.settings import Settings

    settings = Settings.load()

    async def run() -> T:
        async with open_store(settings) as engine:
            return await work(engine, settings)

    with audited(settings):
        return asyncio.run(run())
