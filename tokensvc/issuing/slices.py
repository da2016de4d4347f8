"""Long work on the event loop, cut into slices.

Signing a thousand tokens takes a tenth of a second, and nobody else's request may wait for that: work
that loops over many items breathes between two of them as soon as its slice is spent. The bound that
is promised is 5 ms; a slice is far shorter, since whoever asks for one token meanwhile waits for about
four of them, and for those of all batches that are under way. To breathe costs some 10 us.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

__all__ = ["LoopSlices"]

SLICE_SECONDS: Final = 0.0005


class LoopSlices:
    """Tells one piece of work when to let others run; make one for each request."""

    __slots__ = ("_clock", "_spent_at")

    def __init__(self, perf_counter: Callable[[], float] = time.perf_counter) -> None:
        self._clock = perf_counter
        self._spent_at = perf_counter() + SLICE_SECONDS

    def spent(self) -> bool:
        """Tell whether it is time to `breathe`.

        To be asked first: awaiting something that does nothing costs more than the question, and a
        batch asks it several times for each of its items.
        """
        return self._clock() >= self._spent_at

    async def breathe(self) -> None:
        """Let every other ready task run once, and begin another slice."""
        await asyncio.sleep(0)
        self._spent_at = self._clock() + SLICE_SECONDS
