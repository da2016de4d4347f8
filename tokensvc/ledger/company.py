"""Who records a few rows, and the batches that make way for them.

A batch of a thousand tokens is a tenth of a second of a core, and who asks for one token beside it is to
notice little of that: as long as somebody waits for a commit, batches rest, so that the event loop and
the ledger's thread are there for the commit and for those who come meanwhile. They go on as soon as
nobody waits, one of them in each turn of the event loop. docs/adr/0013-batches-make-way.md has the reasons.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["LONGEST_REST_SECONDS", "MOMENT_SECONDS", "Company"]

MOMENT_SECONDS: Final = 0.1
"""Who came so lately may come again any moment, or another one."""

LONGEST_REST_SECONDS: Final = 0.004
"""Then a batch goes on though somebody waits: where a worker has all it can do, somebody always does."""


class Company:
    """Knows who records a few rows, and lets batches rest; belongs to one event loop.

    `monotonic` gives seconds of a clock that never steps.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.is_waiting = False
        """Whether anybody who records a few rows waits for a commit."""
        self._few_at = -math.inf
        self._resting: dict[asyncio.Future[None], None] = {}
        self._one_will_go_on = False

    @property
    def was_here(self) -> bool:
        """Whether anybody has recorded a few rows a moment ago."""
        return self._monotonic() - self._few_at < MOMENT_SECONDS

    def came(self, now: float) -> None:
        """Take note that somebody waits for a few rows; for the writer."""
        self._few_at = now
        self.is_waiting = True

    def is_served(self) -> None:
        """Take note that nobody waits for a few rows any more; for the writer."""
        self.is_waiting = False
        self._let_one_go_on()

    async def rest(self) -> None:
        """Let others run: for a turn of the event loop, and longer while somebody waits for a commit.

        It takes LONGEST_REST_SECONDS at most.
        """
        if not self.is_waiting and not self._resting:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        rested = loop.create_future()
        timer = loop.call_later(LONGEST_REST_SECONDS, _end, rested)
        self._resting[rested] = None
        self._let_one_go_on()
        try:
            await rested
        finally:
            timer.cancel()
            self._resting.pop(rested, None)

    def _let_one_go_on(self) -> None:
        if self._resting and not self.is_waiting and not self._one_will_go_on:
            self._one_will_go_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        # Not all at once: a slice of each would be one long one for whoever comes now.
        self._one_will_go_on = False
        if self.is_waiting or not self._resting:
            return
        rested = next(iter(self._resting))
        del self._resting[rested]
        _end(rested)
        self._let_one_go_on()


def _end(rested: asyncio.Future[None]) -> None:
    if not rested.done():
        rested.set_result(None)
