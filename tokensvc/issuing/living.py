"""Is this participant one who may be given another token? Asked by exchanges and repetitions.

IVS revokes by participant id: a new token under the id of somebody who was disconnected does not join
(RealTimeAPIReference, DisconnectParticipant), so none is handed out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from tokensvc.ledger.lookups import IssuedRecord
from tokensvc.ledger.row import CONNECTION
from tokensvc.store.many import Pace

__all__ = ["IssuedTokens", "PendingDisconnects", "why_going", "why_gone", "why_not_again"]


class IssuedTokens(Protocol):
    """The ledger, as far as looking tokens up goes."""

    async def latest(self, token_id: str) -> IssuedRecord | None:
        """Return the newest token with this `jti`; raises StoreUnavailableError."""
        ...

    async def latest_of(self, token_ids: Sequence[str], pace: Pace) -> Mapping[str, IssuedRecord]:
        """Return the newest token of each `jti` that is known; raises StoreUnavailableError."""
        ...


class PendingDisconnects(Protocol):
    """The stored disconnects that IVS has not taken yet."""

    async def pending_of(
        self, named: Sequence[tuple[str | None, str]]
    ) -> Collection[tuple[str | None, str]]:
        """Return which of some participants, named by stage and id, are about to be disconnected.

        Without a stage it is a connection token that is about to be revoked. Raises
        StoreUnavailableError.
        """
        ...


async def why_not_again(known: IssuedRecord, pending: PendingDisconnects, now: float) -> str | None:
    """Return why the participant of `known` gets no further token, or None; raises
    StoreUnavailableError."""
    reason = why_gone(known, now)
    if reason is None and await pending.pending_of([(known.stage_arn, known.token_id)]):
        return why_going(known)
    return reason


def why_gone(known: IssuedRecord, now: float) -> str | None:
    """Return why the ledger alone says no; None leaves pending disconnects to be asked for."""
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
    return None


def why_going(known: IssuedRecord) -> str:
    """Return why one of whom a disconnect is pending gets no further token."""
    if known.kind == CONNECTION:
        return "The token is being revoked."
    return "The participant is being disconnected; IVS takes no token under its id after that."
