"""How far the host's clock is from AWS's, as the `Date` header of IVS's answers tells.

A token's `iat` and `exp` come from the host's clock, and are judged by others': a clock that is minutes
off makes tokens that cannot join, and requests that AWS refuses. Every answer of IVS, errors included,
carries AWS's time (RFC 9110 section 6.6.1), so watching costs no call. It is in whole seconds, and the
answer was under way for a while: a reading says between which bounds the truth lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["ClockDrift", "ClockReading"]

_DATE_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The host's clock against AWS's, at `read_at` (Unix seconds by the host's clock).

    The host is ahead of AWS by `offset_seconds` (behind where negative), give or take
    `uncertainty_seconds`.
    """

    region: str
    offset_seconds: float
    uncertainty_seconds: float
    read_at: float

    @property
    def at_least_seconds(self) -> float:
        """By how much the host's clock is off for certain; 0 where it may be right."""
        return max(0.0, abs(self.offset_seconds) - self.uncertainty_seconds)

    def age(self, now: float) -> float:
        """Return the seconds since the reading, by the host's clock at `now`."""
        return max(0.0, now - self.read_at)


class ClockDrift:
    """The last reading of each Region; may be used from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Read the host's time from `clock`, in Unix seconds."""
        self.clock = clock
        self._readings: dict[str, ClockReading] = {}

    def answered(self, region: str, *, sent_at: float, date: str | None) -> None:
        """Take note of an answer that has just arrived, asked for at `sent_at` by the host's clock.

        A header that is missing or cannot be read is no reading, and neither is an answer before which
        the host's clock was set back.
        """
        received_at = self.clock()
        aws_time = _parse(date)
        if aws_time is None or received_at < sent_at:
            return
        # AWS wrote the header between the two host times, and up to a second after what it says.
        self._readings[region] = ClockReading(
            region=region,
            offset_seconds=(sent_at + received_at - _DATE_STEP_SECONDS) / 2 - aws_time,
            uncertainty_seconds=(received_at - sent_at + _DATE_STEP_SECONDS) / 2,
            read_at=received_at,
        )

    def latest(self, region: str) -> ClockReading | None:
        """Return the last reading of a Region; None before the first answer."""
        return self._readings.get(region)

    def readings(self) -> frozenset[ClockReading]:
        """Return the last reading of every Region."""
        return frozenset([*self._readings.values()])

    def offsets(self) -> dict[str, float]:
        """Return by how many seconds the host was ahead of AWS at each Region's last reading."""
        return {found.region: found.offset_seconds for found in [*self._readings.values()]}

    def worst(self, *, max_age_seconds: float) -> ClockReading | None:
        """Return, of all Regions' readings that are young enough, the one that is off the most."""
        now = self.clock()
        young = [found for found in [*self._readings.values()] if found.age(now) <= max_age_seconds]
        return max(young, key=lambda found: found.at_least_seconds, default=None)


def _parse(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        found = parsedate_to_datetime(date)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
