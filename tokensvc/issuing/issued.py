"""A token that is about to be handed out, and what the ledger will remember of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from tokensvc.ivs.gateway import IvsToken
from tokensvc.ledger.row import PARTICIPANT, LedgerRow
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.claims import StageEndpoints, TokenRequest, participant_claims

__all__ = ["Draft", "Identity", "IssuedToken", "made_by_ivs", "signed_here"]


class IssuedToken(msgspec.Struct, frozen=True, rename="camel", repr_omit_defaults=True):
    """A token and what its caller needs to know of it; encodes to the body of a 201.

    `duration` is in minutes; `expiration_time` is the token's `exp`.
    """

    token: str
    participant_id: str
    user_id: str | None
    attributes: dict[str, str]
    capabilities: tuple[str, ...]
    duration: int
    expiration_time: datetime
    issuer: Literal["local", "ivs"]
    key_arn: str | None
    exchangeable: bool

    def __repr__(self) -> str:
        return f"<IssuedToken {self.participant_id} issuer={self.issuer}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("participant_id", self.participant_id), ("issuer", self.issuer)]


class Identity(NamedTuple):
    """What makes a participant's token this one; times are whole Unix seconds."""

    participant_id: str
    iat: int
    exp: int


class Draft(NamedTuple):
    """A token with its ledger row; it leaves only after the row is committed."""

    token: IssuedToken
    row: LedgerRow


def signed_here(
    request: TokenRequest,
    endpoints: StageEndpoints,
    identity: Identity,
    key: SigningKey,
    caller_id: str | None,
) -> Draft:
    """Sign a participant token with `key`."""
    claims = participant_claims(
        request,
        endpoints,
        participant_id=identity.participant_id,
        iat=identity.iat,
        exp=identity.exp,
    )
    token = IssuedToken(
        token=key.mint(claims),
        participant_id=identity.participant_id,
        user_id=request.user_id,
        attributes=dict(request.attributes),
        capabilities=request.capabilities,
        duration=request.duration,
        expiration_time=datetime.fromtimestamp(identity.exp, UTC),
        issuer="local",
        key_arn=key.arn,
        exchangeable=True,
    )
    row = LedgerRow(
        token_id=identity.participant_id,
        kind=PARTICIPANT,
        stage_arn=str(request.stage),
        region=request.stage.region,
        user_id=request.user_id,
        key_id=key.key_id,
        key_arn=key.arn,
        caller_id=caller_id,
        issuer="local",
        iat=identity.iat,
        exp=identity.exp,
        endpoints=endpoints,
    )
    return Draft(token, row)


def made_by_ivs(request: TokenRequest, made: IvsToken, now: int, caller_id: str | None) -> Draft:
    """Wrap a token that CreateParticipantToken returned at `now`."""
    token = IssuedToken(
        token=made.token,
        participant_id=made.participant_id,
        user_id=made.user_id,
        attributes=dict(made.attributes),
        capabilities=made.capabilities,
        duration=made.duration,
        expiration_time=datetime.fromtimestamp(made.expiration_time, UTC),
        issuer="ivs",
        key_arn=None,
        exchangeable=False,
    )
    row = LedgerRow(
        token_id=made.participant_id,
        kind=PARTICIPANT,
        stage_arn=str(request.stage),
        region=request.stage.region,
        user_id=made.user_id,
        key_id=None,
        key_arn=None,
        caller_id=caller_id,
        issuer="ivs",
        iat=now,
        exp=made.expiration_time,
        endpoints=None,
    )
    return Draft(token, row)
