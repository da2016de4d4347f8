"""When the last token that a key signed expires: the mark before which the key must not be deleted.

The latest `exp` in the ledger is not the answer while rows may still come. A row may come as long as
some replica signs with the key (its view of the ring may be old, within a bound) and then for as long
as `LedgerWriter.record` may take. A token is handed out only when `record` has succeeded, so once the
key has stopped signing everywhere and MAX_RECORD_SECONDS have passed, no token can appear that is not
in the ledger: the mark is settled, and never grows again.

Where rows may be lost (`relaxed`), the ledger proves nothing; then the mark is the moment the key
stopped signing plus the longest time to live there was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokensvc.ledger.lookups import Ledger
from tokensvc.ledger.writer import MAX_RECORD_SECONDS, Durability

__all__ = ["DrainMark", "DrainMarks"]


@dataclass(frozen=True, slots=True)
class DrainMark:
    """`latest_expiry` in Unix seconds (None: no token is known); final once `settled`."""

    latest_expiry: int | None
    settled: bool


class DrainMarks:
    """Reads drain marks; `longest_ttl` in seconds is the longest life of any token of any kind."""

    def __init__(self, ledger: Ledger, *, durability: Durability, longest_ttl: float) -> None:
        self._ledger = ledger
        self._durability = durability
        self._longest_ttl = longest_ttl

    async def read(self, key_id: str, *, stopped_signing_at: float, now: float) -> DrainMark:
        """Return the mark of a key that no replica signs with after `stopped_signing_at`.

        `stopped_signing_at` is when the key was retired, plus the age at which a replica stops
        trusting its view of the ring, plus whatever clocks may differ. Raises StoreUnavailableError.
        """
        latest = await self._ledger.latest_expiry(key_id)
        if self._durability == "relaxed":
            bound = math.ceil(stopped_signing_at + self._longest_ttl)
            latest = bound if latest is None else max(latest, bound)
        return DrainMark(latest, settled=now > stopped_signing_at + MAX_RECORD_SECONDS)
