"""When keys change, and whether that can work in the slots there are.

IVS holds 3 public keys per Region (Service Quotas, RealTimeUserGuide; not adjustable): the ACTIVE one,
a STANDBY that must have been there a while before it signs, and RETIRING ones until their last token
has expired. How many RETIRING keys there are at a time follows from the period and the longest life
of a token, so a period that is too short for its tokens is refused here, at start, and not found out
weeks later by a rotation that has nowhere to go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tokensvc.errors import ConfigurationError
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS, MAX_PARTICIPANT_TTL_SECONDS

__all__ = ["SLOTS", "RotationPolicy"]

SLOTS: Final = 3
"""Public keys that IVS holds in one Region, for all owners together."""

# From a signature to its row in the ledger; a request that takes longer has been given up.
_HANDOUT_SECONDS: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class RotationPolicy:
    """The times of a key's life, all in seconds.

    Raises ConfigurationError, naming the settings, where they cannot work together.
    """

    period: float
    """How long a key signs."""

    longest_participant_ttl: float
    """The longest life of a participant token that may be asked for; IVS allows 14 days."""

    longest_connection_ttl: float = 0.0
    """The same for connection tokens, which IVS allows 28 days; 0 where none are issued."""

    skew: float = 60.0
    """How far the clock of any replica may be from that of AWS; beyond it, nothing rotates or deletes."""

    standby_min_age: float = 600.0
    """How long IVS has held a key before it takes over from another one."""

    view_max_age: float = 30.0
    """How old a replica's view of the ring may be before it stops signing."""

    overdue_after: float = 3600.0
    """How late a step may be before it is reported as overdue."""

    ledger_complete: bool = True
    """Whether every token that left is in the ledger. Where not, a key is kept as long as its
    longest possible token could live."""

    def __post_init__(self) -> None:
        faults = [*self._bad_bounds()]
        if not faults and self.slots_needed > SLOTS:
            faults.append(self._too_many_slots())
        if faults:
            raise ConfigurationError("\n".join(faults))

    @property
    def longest_ttl(self) -> float:
        """The longest life of any token, in seconds."""
        return max(self.longest_participant_ttl, self.longest_connection_ttl)

    @property
    def settle(self) -> float:
        """How long after its retirement a key's last token may still be on its way out.

        By the clock of whoever deletes it, which may be as far ahead as that of whoever retired it is behind.
        """
        return self.view_max_age + _HANDOUT_SECONDS + 2 * self.skew

    @property
    def drain(self) -> float:
        """The longest time from a key's retirement to its deletion."""
        return self.settle + self.longest_ttl

    @property
    def slots_needed(self) -> int:
        """The keys at IVS at the moment when the next standby must be there.

        That moment is `standby_min_age` before a rotation. Of the keys that retired one, two, ...
        periods before that rotation, those that are not drained then still take a slot.
        """
        return 2 + math.ceil((self.drain + self.standby_min_age) / self.period) - 1

    def _bad_bounds(self) -> list[str]:
        bounds = {
            "TOKENSVC_ROTATION_PERIOD": (self.period, 60.0, 10 * 365 * _DAY),
            "the longest participant token": (
                self.longest_participant_ttl,
                60.0,
                MAX_PARTICIPANT_TTL_SECONDS,
            ),
            "the longest connection token": (
                self.longest_connection_ttl,
                0.0,
                MAX_CONNECTION_TTL_SECONDS,
            ),
            "TOKENSVC_CLOCK_SKEW": (self.skew, 0.0, _HOUR),
            "TOKENSVC_STANDBY_MIN_AGE": (self.standby_min_age, 0.0, 7 * _DAY),
            "TOKENSVC_RING_MAX_AGE": (self.view_max_age, 1.0, _HOUR),
            "TOKENSVC_ROTATION_OVERDUE": (self.overdue_after, 1.0, 30 * _DAY),
        }
        return [
            f"{name}: is {_words(value)}; it must be {_words(low)} to {_words(high)}"
            for name, (value, low, high) in bounds.items()
            if not low <= value <= high
        ]

    def _too_many_slots(self) -> str:
        rest = self.settle + self.standby_min_age
        shortest = (self.drain + self.standby_min_age) / (SLOTS - 1)
        longest = (SLOTS - 1) * self.period - rest
        if self.longest_connection_ttl > self.longest_participant_ttl:
            setting, unit, of = "TOKENSVC_MAX_CONNECTION_DURATION", 60.0, "connection tokens of"
        else:
            setting, unit, of = "TOKENSVC_MAX_DURATION", 60.0, "TTL"
        lower = math.floor(longest / unit)
        advice = f"raise TOKENSVC_ROTATION_PERIOD to at least {math.ceil(shortest)} (seconds)"
        if lower >= 1:
            advice += f", or lower {setting} to {lower} (minutes)"
        return (
            f"period {_words(self.period)} with {of} {_words(self.longest_ttl)} needs "
            f"{self.slots_needed} slots, IVS gives {SLOTS}: {advice}"
        )


def _words(seconds: float) -> str:
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (60.0, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
