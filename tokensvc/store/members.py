"""How many processes work on this database now, so that they can divide what they have together.

Each process has a row among the leases, whose fence it raises with every beat. A row counts while its
fence was seen to move within `ALIVE_SECONDS` of the reader's own monotonic clock, so no two clocks are
compared; one that the reader has only just met counts, too. While the store does not answer, nobody's
moves: after a silence of its own the reader counts all as just met. A process that was killed is thus
counted for some seconds too long, never too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, delete, select, update

from tokensvc.store.inserts import insert_absent
from tokensvc.store.tables import leases
from tokensvc.store.transactions import Transactions

__all__ = ["ALIVE_SECONDS", "BEAT_SECONDS", "Members"]

BEAT_SECONDS: Final = 6.0
ALIVE_SECONDS: Final = 20.0
FORGOTTEN_SECONDS: Final = 600.0
"""After which the row of a process that was killed is deleted."""

_PREFIX: Final = "member:"


class Members:
    """This process among the others; `name` is random. `monotonic` is a clock that nobody sets."""

    def __init__(
        self, transactions: Transactions, name: str, monotonic: Callable[[], float]
    ) -> None:
        self._transactions = transactions
        self._name = f"{_PREFIX}{name}"
        self._monotonic = monotonic
        self._seen: dict[str, tuple[object, float]] = {}
        self._beat_at = -math.inf

    async def beat(self) -> int:
        """Say that this process lives, and return how many do, this one included.

        Raises StoreUnavailableError.
        """
        now = self._monotonic()
        if now - self._beat_at > 2 * BEAT_SECONDS:
            self._seen = {}
        gone = [name for name, (_, at) in self._seen.items() if now - at > FORGOTTEN_SECONDS]

        def work(connection: Connection) -> dict[str, object]:
            mine = {"name": self._name, "holder": "", "fence": 0, "expires_at": 0.0}
            insert_absent(connection, leases, [mine])
            connection.execute(
                update(leases).where(leases.c.name == self._name).values(fence=leases.c.fence + 1)
            )
            if gone:
                connection.execute(delete(leases).where(leases.c.name.in_(gone)))
            rows = connection.execute(
                select(leases.c.name, leases.c.fence).where(leases.c.name.startswith(_PREFIX))
            )
            # A fence is compared and no more: what is damaged (SQLite stores any type) does not move.
            return {str(row.name): row.fence for row in rows}

        found = await self._transactions.run("count processes", work)
        self._seen = {name: self._moved(name, fence, now) for name, fence in found.items()}
        self._beat_at = now
        return sum(now - at <= ALIVE_SECONDS for _, at in self._seen.values())

    async def leave(self) -> None:
        """Say that this process ends; raises StoreUnavailableError."""
        statement = delete(leases).where(leases.c.name == self._name)
        await self._transactions.run(
            "leave processes", lambda connection: connection.execute(statement)
        )

    def _moved(self, name: str, fence: object, now: float) -> tuple[object, float]:
        before = self._seen.get(name)
        return before if before is not None and before[0] == fence else (fence, now)
