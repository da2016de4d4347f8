"""Calls a second, for each operation and Region, as IVS's quotas have them.

User Guide, "Service Quotas": none of them can be raised. How much AWS lets through in a burst is not
documented; here it is a second's worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tokensvc.emulator.errors import ThrottlingError

__all__ = ["CALLS_PER_SECOND", "DEFAULT_CALLS_PER_SECOND", "CallQuotas"]

DEFAULT_CALLS_PER_SECOND: Final = 5
"""Of the operations that are not listed; RevokeConnectionToken's is not documented."""

CALLS_PER_SECOND: Final[Mapping[str, int]] = {
    "CreateParticipantToken": 50,
    "DeletePublicKey": 3,
    "GetPublicKey": 3,
    "ImportPublicKey": 3,
    "ListPublicKeys": 3,
    "ListTagsForResource": 10,
    "TagResource": 10,
    "UntagResource": 10,
}


class CallQuotas:
    """A token bucket for each operation and Region."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start with full buckets; `clock` gives seconds."""
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, operation: str, region: str) -> None:
        """Count a call. Raises ThrottlingError where the operation has none left."""
        rate = CALLS_PER_SECOND.get(operation, DEFAULT_CALLS_PER_SECOND)
        now = self._clock()
        left, since = self._buckets.get((operation, region), (float(rate), now))
        left = min(float(rate), left + max(0.0, now - since) * rate)
        if left < 1:
            self._buckets[operation, region] = (left, now)
            raise ThrottlingError("Rate exceeded")
        self._buckets[operation, region] = (left - 1, now)
