"""The budgets of calls to IVS, divided among all processes of the installation.

IVS allows the account 50 CreateParticipantToken a second, whoever asks, and 3 calls of each kind that
concern public keys. Every process counts itself and the others in the database (`store/members.py`) and
takes its part. One that comes to others takes next to nothing of the former until they have counted it, so
that the whole is not exceeded meanwhile. Of the latter it takes its part at once: they are few, and a
key that is missing should not wait.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from tokensvc.errors import StoreUnavailableError
from tokensvc.http.background import Sleep, every
from tokensvc.ivs.budgets import CallBudgets
from tokensvc.store.members import BEAT_SECONDS, Members
from tokensvc.store.transactions import Transactions

__all__ = ["BudgetSharing"]

_NEWCOMER_PARTS: Final = 50.0
"""Of which a newcomer among others takes one: a call a second at most."""

_NEWCOMER_BEATS: Final = 2
"""After so many beats of its own everybody else has beaten at least once, and has counted it."""

_LEAVE_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class BudgetSharing:
    """Keeps one process's part of the budgets right."""

    def __init__(
        self,
        budgets: CallBudgets,
        transactions: Transactions,
        monotonic: Callable[[], float],
        *,
        workers: int = 1,
    ) -> None:
        """`workers`: the processes of a machine, one of which looks after the keys."""
        self._budgets = budgets
        self._workers = workers
        self._members = Members(transactions, secrets.token_hex(8), monotonic)
        self._beats = 0
        self.processes = 1

    @property
    def tenders(self) -> int:
        """How many processes look after keys, where every machine has as many as this one."""
        return math.ceil(self.processes / self._workers)

    async def beat(self) -> None:
        """Count the processes and take a part; raises StoreUnavailableError."""
        self.processes = count = await self._members.beat()
        newcomer = count > 1 and self._beats < _NEWCOMER_BEATS
        parts = _NEWCOMER_PARTS * count if newcomer else count
        self._budgets.divide(parts, tenders=self.tenders)
        self._beats += 1

    async def run(self, sleep: Sleep) -> None:
        """Beat every few seconds until cancelled; a store that does not answer is outlived."""
        await every(BEAT_SECONDS, self.beat, name="budget sharing", sleep=sleep)

    @asynccontextmanager
    async def taking_part(self) -> AsyncIterator[None]:
        """Take part while the body runs. Raises StoreUnavailableError before it begins."""
        await self.beat()
        try:
            yield
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._members.leave()
        except TimeoutError:
            _log.warning("process_not_signed_off", seconds=_LEAVE_SECONDS)
        except StoreUnavailableError as error:
            _log.warning("process_not_signed_off", detail=error.detail)
