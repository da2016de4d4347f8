"""May what is done by the host's clock, and cannot be undone, be done now?

AWS's answers say how far the clock is off, and between two of them it may leap (a wrong time source, a
machine that was suspended). That is noticed at once: the clock then moves against the monotonic one,
which nobody sets. After a leap it is not believed before AWS has told the time again. Rows of the
ledger, bans and calls to IVS are not given up by a clock that is not believed.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from tokensvc.ivs.clock_drift import ClockDrift, ClockReading

__all__ = ["ClockWatch"]

_log = structlog.get_logger(__name__)


class ClockWatch:
    """Watches the clock of `drift`; `limit` is in seconds, `monotonic` a clock that nobody sets."""

    def __init__(self, drift: ClockDrift, *, monotonic: Callable[[], float], limit: float) -> None:
        self._drift = drift
        self._monotonic = monotonic
        self._limit = limit
        self._offset = self._offset_now()
        self._leapt = False
        self._told_before_leap: frozenset[ClockReading] = frozenset()

    def is_right(self) -> bool:
        """Tell whether the clock may be believed, within the limit.

        Before AWS's first answer it is, unless it has leapt.
        """
        offset = self._offset_now()
        if abs(offset - self._offset) > self._limit:
            _log.warning("clock_leapt", seconds=round(offset - self._offset, 1))
            self._offset, self._leapt = offset, True
            self._told_before_leap = self._drift.readings()
        told = self._drift.readings() - self._told_before_leap
        if not told:
            return not self._leapt
        return all(reading.at_least_seconds <= self._limit for reading in told)

    def _offset_now(self) -> float:
        return self._drift.clock() - self._monotonic()
