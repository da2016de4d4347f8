"""Long work on the event loop, cut into slices.

Signing a thousand tokens takes a tenth of a second, and nobody else's request may wait for that: work
that loops over many items breathes between two of them as soon as its slice is spent. The bound that
is promised is 5 ms; a slice is far shorter, since whoever asks for one token meanwhile waits for several
of them, and for those of all batches that are under way. Where somebody does, slices are shorter still,
and between two of them a batch rests until the ledger has committed what is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Company", "LoopSlices"]

SLICE_SECONDS: Final = 0.001
SHORT_SLICE_SECONDS: Final = 0.00025


class Company(Protocol):
    """Those who ask for a single token beside the batches."""

    @property
    def was_here(self) -> bool:
        """Whether there was one a moment ago, so that another may come any moment."""
        ...

    async def rest(self) -> None:
        """Let others run; while one of them waits for the ledger, for longer than a turn."""
        ...


class _Nobody:
    was_here = False

    async def rest(self) -> None:
        await asyncio.sleep(0)


class LoopSlices:
    """Tells one piece of work when to let others run; make one for each request."""

    __slots__ = ("_clock", "_company", "_spent_at")

    def __init__(
        self,
        perf_counter: Callable[[], float] = time.perf_counter,
        company: Company = _Nobody(),  # noqa: B008 - it has no state
    ) -> None:
        self._clock = perf_counter
        self._company = company
        self._spent_at = 0.0
        self._begin()

    def spent(self) -> bool:
        """Tell whether it is time to `breathe`.

        To be asked first: awaiting something that does nothing costs more than the question, and a
        batch asks it several times for each of its items.
        """
        return self._clock() >= self._spent_at

    async def breathe(self) -> None:
        """Let every other ready task run once, and longer in company; then begin another slice."""
        await self._company.rest()
        self._begin()

    def _begin(self) -> None:
        length = SHORT_SLICE_SECONDS if self._company.was_here else SLICE_SECONDS
        self._spent_at = self._clock() + length
