"""Leases: work that one process at a time may do, by compare-and-swap.

A lease is held until its end, unless it is renewed. Whoever holds one stops `SAFETY_SECONDS` before the
end, and nobody takes it before the end. Clocks may disagree all the same, so whoever must never work
beside another asks `still_held` before each piece of work, and lets a moment pass before its first: the
fence decides, and no clock. An end that is further away than any lease lasts was written by a clock
that was ahead, and keeps nobody out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.store.faults import store_faults
from tokensvc.store.inserts import insert_absent
from tokensvc.store.tables import leases
from tokensvc.store.transactions import Transactions

__all__ = ["CLOCKS_APART_SECONDS", "SAFETY_SECONDS", "Lease", "LeaseStore"]

SAFETY_SECONDS: Final = 5.0
CLOCKS_APART_SECONDS: Final = 60.0
"""How far the clocks of two replicas may be apart before a lease of one is none to the other."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work until `expires_at` (Unix seconds); `fence` grows with every new holder."""

    name: str
    holder: str
    fence: int
    expires_at: float

    def may_work(self, now: float) -> bool:
        """Tell whether a piece of work may begin at `now`."""
        return now < self.expires_at - SAFETY_SECONDS


class LeaseStore:
    """Takes, renews and returns leases; every method raises StoreUnavailableError."""

    def __init__(self, engine: AsyncEngine, transactions: Transactions) -> None:
        self._engine = engine
        self._transactions = transactions

    async def take(self, name: str, holder: str, *, seconds: float, now: float) -> Lease | None:
        """Return the lease for `seconds`, or None while another process holds it.

        `holder` is a random name of one process run. `seconds` exceeds SAFETY_SECONDS.
        """
        latest = now + seconds + CLOCKS_APART_SECONDS
        # A read first, so that those who wait write nothing.
        with store_faults("read lease"):
            async with self._engine.connect() as connection:
                query = select(leases.c.expires_at).where(leases.c.name == name)
                expires_at = (await connection.execute(query)).scalar()
        # SQLite stores any type, and sorts text behind all numbers: what is damaged keeps nobody out.
        if isinstance(expires_at, (int, float)) and now < expires_at <= latest:
            return None

        def work(connection: Connection) -> Lease | None:
            nobody = {"name": name, "holder": "", "fence": 0, "expires_at": now}
            insert_absent(connection, leases, [nobody])
            swap = (
                update(leases)
                .where(
                    leases.c.name == name,
                    or_(leases.c.expires_at <= now, leases.c.expires_at > latest),
                )
                .values(holder=holder, fence=leases.c.fence + 1, expires_at=now + seconds)
                .returning(leases.c.fence)
            )
            fence = connection.execute(swap).scalar()
            return None if fence is None else Lease(name, holder, fence, now + seconds)

        return await self._transactions.run("take lease", work)

    async def still_held(self, lease: Lease) -> bool:
        """Tell whether nobody has taken the lease since, whatever the clocks say."""
        query = select(leases.c.fence).where(
            leases.c.name == lease.name, leases.c.holder == lease.holder
        )
        with store_faults("read lease"):
            async with self._engine.connect() as connection:
                fence = (await connection.execute(query)).scalar()
        return bool(fence == lease.fence)

    async def renew(self, lease: Lease, *, seconds: float, now: float) -> Lease | None:
        """Return the lease prolonged, or None where it has another holder by now."""
        renewed = Lease(lease.name, lease.holder, lease.fence, now + seconds)
        return renewed if await self._set_end(lease, renewed.expires_at) else None

    async def give_back(self, lease: Lease, *, free_at: float) -> None:
        """Let others have the lease from `free_at` on; nothing happens where they have it already."""
        await self._set_end(lease, free_at)

    async def _set_end(self, lease: Lease, expires_at: float) -> bool:
        statement = (
            update(leases)
            .where(
                leases.c.name == lease.name,
                leases.c.holder == lease.holder,
                leases.c.fence == lease.fence,
            )
            .values(expires_at=expires_at)
        )
        return await self._transactions.run(
            "renew lease", lambda connection: connection.execute(statement).rowcount == 1
        )
