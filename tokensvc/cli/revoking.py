"""What the commands that kick and ban have in common: the database opened, and no IVS.

What is stored is taken up within a second by a service that runs on the same database; where none runs,
it waits for the next one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import click

from tokensvc.cli.opening import with_store

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tokensvc.revocation import Revocations
    from tokensvc.settings import Settings

__all__ = ["COMMAND_LINE", "PAGE", "reason_option", "with_revocations"]

T = TypeVar("T")

COMMAND_LINE: Final = "command-line"
"""Who is said to have asked; no caller id looks like this."""

PAGE: Final = 1000

reason_option = click.option(
    "--reason", help="Told to IVS and kept with the ban, at most 128 characters."
)


def with_revocations(work: Callable[[Revocations, tuple[str, ...]], Awaitable[T]]) -> T:
    """Do `work` with the revocations of the database and the Regions that the settings name."""

    async def run(engine: AsyncEngine, settings: Settings) -> T:
        regions = settings.require_regions()
        async with _open_revocations(engine, settings) as revocations:
            return await work(revocations, regions)

    return with_store(run)


@asynccontextmanager
async def _open_revocations(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Revocations]:
    from tokensvc.ledger import Ledger
    from tokensvc.revocation import BanList, BanStore, CallQueue, DisconnectStore, Revocations
    from tokensvc.store.transactions import open_transactions

    transactions = open_transactions(engine)
    try:
        ban_store = BanStore(engine, transactions, time.time)
        yield Revocations(
            store=DisconnectStore(engine, transactions),
            calls=CallQueue(engine, transactions),
            ban_store=ban_store,
            bans=BanList(ban_store, time.time),
            ledger=Ledger(engine),
            clock=time.time,
            wake=lambda _: None,
            idempotency_window=settings.idempotency_window,
            retention=settings.ledger_retention,
        )
    finally:
        await transactions.aclose()
