"""Is this participant one who may be given another token? Asked by exchanges and repetitions.

IVS revokes by participant id: a new token under the id of somebody who was disconnected does not join
(RealTimeAPIReference, DisconnectParticipant), so none is handed out.
"""

from __future__ import annotations

from typing import Protocol

from tokensvc.ledger.lookups import IssuedRecord
from tokensvc.ledger.row import CONNECTION

__all__ = ["IssuedTokens", "PendingDisconnects", "why_not_again"]


class IssuedTokens(Protocol):
    """The ledger, as far as looking one token up goes."""

    async def latest(self, token_id: str) -> IssuedRecord | None:
        """Return the newest token with this `jti`; raises StoreUnavailableError."""
        ...


class PendingDisconnects(Protocol):
    """The stored disconnects that IVS has not taken yet."""

    async def is_pending(self, stage_arn: str | None, token_id: str) -> bool:
        """Tell whether a participant is about to be disconnected, or a connection token to be revoked.

        A connection token has no stage. Raises StoreUnavailableError.
        """
        ...


async def why_not_again(known: IssuedRecord, pending: PendingDisconnects, now: float) -> str | None:
    """Return why the participant of `known` gets no further token, or None; raises
    StoreUnavailableError."""
    if known.issuer == "ivs":
        return (
            "Its token was issued by IVS (CreateParticipantToken), and only tokens that were signed"
            " with an imported key can be exchanged or given again."
        )
    if known.lives_until <= now:
        return "Its token has expired; mint a new one."
    if known.disconnected_at is not None:
        if known.kind == CONNECTION:
            return "The token has been revoked."
        return "The participant has been disconnected; IVS takes no token under its id again."
    if await pending.is_pending(known.stage_arn, known.token_id):
        if known.kind == CONNECTION:
            return "The token is being revoked."
        return "The participant is being disconnected; IVS takes no token under its id after that."
    return None
