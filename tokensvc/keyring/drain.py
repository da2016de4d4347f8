"""Until when a retiring key is needed.

The last token that a key signed is known from the ledger. It is asked only once every replica has
stopped to sign with the key and every token has reached the ledger (`RotationPolicy.settle`); before
that its answer may still grow. Where the ledger cannot know all tokens, the key is kept as long as
the longest token it could have signed lives: no replica signs a token longer than the key's own
`longest_ttl`, whatever its settings say.
"""

from __future__ import annotations

from typing import Protocol

from tokensvc.keyring.phases import Drained
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase, KeyRecord

__all__ = ["DrainMarks", "delete_at", "drained"]


class DrainMarks(Protocol):
    """What the ledger knows of a key's tokens."""

    async def latest_expiry(self, key_id: str) -> float | None:
        """Return the latest `exp` signed with this key (Unix seconds), None where there is none.

        Raises StoreUnavailableError.
        """
        ...


def delete_at(key: KeyRecord, latest_expiry: float | None, policy: RotationPolicy) -> float | None:
    """Return the Unix time from which a RETIRING key may be deleted; None in another phase."""
    if key.phase is not KeyPhase.RETIRING or key.retired_at is None:
        return None
    settled = key.retired_at + policy.settle
    expiry = settled if latest_expiry is None else latest_expiry + policy.skew
    # An orphan's tokens are in a ledger that is lost.
    if policy.ledger_complete and key.activated_at is not None:
        return max(settled, expiry)
    return max(settled + (key.longest_ttl or 0.0), expiry)


def drained(
    key: KeyRecord, latest_expiry: float | None, policy: RotationPolicy, now: float
) -> Drained | None:
    """Return the evidence that no token of `key` lives at `now`, or None."""
    since = delete_at(key, latest_expiry, policy)
    return Drained(key.key_id, since) if since is not None and since <= now else None
