"""Long work on the event loop, cut into slices.

Signing a thousand tokens takes a tenth of a second, and nobody else's request may wait for that: work
that loops over many items breathes between two of them as soon as its slice is spent. The bound that
is promised is 5 ms; a slice is far shorter, since whoever asks for one token meanwhile waits for several
of them, and for those of all batches that are under way. Where somebody does, slices are shorter still,
and between them the ledger's thread has the interpreter to itself while it commits what is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Company", "LoopSlices"]

SLICE_SECONDS: Final = 0.001
SHORT_SLICE_SECONDS: Final = 0.00025
PAUSE_SECONDS: Final = 0.001
"""As short as the event loop's timers are."""


class Company(Protocol):
    """Those who ask for a single token beside the batches."""

    @property
    def is_waiting(self) -> bool:
        """Whether one of them waits for the ledger now."""
        ...

    @property
    def was_here(self) -> bool:
        """Whether there was one a moment ago, so that another may come any moment."""
        ...

    def batch_works(self) -> None:
        """Take note that the event loop is a batch's in part."""
        ...


class _Nobody:
    is_waiting = False
    was_here = False

    def batch_works(self) -> None: ...


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
        """Let every other ready task run once, or for a moment, and begin another slice."""
        await asyncio.sleep(PAUSE_SECONDS if self._company.is_waiting else 0)
        self._begin()

    def _begin(self) -> None:
        self._company.batch_works()
        length = SHORT_SLICE_SECONDS if self._company.was_here else SLICE_SECONDS
        self._spent_at = self._clock() + length
