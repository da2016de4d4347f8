"""A token that is about to be handed out, and what the ledger will remember of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, TypeAlias

import msgspec

from tokensvc.ivs.gateway import IvsToken
from tokensvc.ledger.row import PARTICIPANT, LedgerRow
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.claims import (
    StageEndpoints,
    TokenRequest,
    beginning_of_payloads,
    participant_payload,
    rest_of_payload,
)

__all__ = ["Draft", "Identity", "IssuedToken", "made_by_ivs", "signed_here", "signs_here"]


class IssuedToken(msgspec.Struct, frozen=True, rename="camel", repr_omit_defaults=True, gc=False):
    """A token and what its caller needs to know of it; encodes to the body of a 201.

    `duration` is in minutes; `expiration_time` is the token's `exp`.
    """

    token: str
    participant_id: str
    user_id: str | None
    attributes: Mapping[str, str]
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


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What makes a participant's token this one; times are whole Unix seconds."""

    participant_id: str
    iat: int
    exp: int


class Draft(msgspec.Struct, frozen=True, gc=False):
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
    participant_id, iat, exp = identity.participant_id, identity.iat, identity.exp
    shared, rest = participant_payload(
        request, endpoints, participant_id=participant_id, iat=iat, exp=exp
    )
    text = key.mint_payload(shared, rest)
    common = _common(request, endpoints, iat, exp, key, caller_id)
    return _draft(text, participant_id, request.attributes, request.user_id, common)


def signs_here(
    like: TokenRequest,
    endpoints: StageEndpoints,
    iat: int,
    exp: int,
    key: SigningKey,
    caller_id: str | None,
    new_id: Callable[[], str],
) -> Callable[[TokenRequest], Draft]:
    """Return what signs requests that differ from `like` in user and attributes alone.

    Each is signed as `signed_here` would sign it, for a new participant; what they have in common is made
    once.
    """
    beginning, left = beginning_of_payloads(like, endpoints, iat=iat, exp=exp)
    mint = key.mints_after(beginning)
    common = _common(like, endpoints, iat, exp, key, caller_id)

    def sign(request: TokenRequest) -> Draft:
        user_id, attributes, participant_id = request.user_id, request.attributes, new_id()
        text = mint(rest_of_payload(left, participant_id, attributes, user_id))
        return _draft(text, participant_id, attributes, user_id, common)

    return sign


_Common: TypeAlias = tuple[
    tuple[str, ...], int, datetime, str, str, str, str, str | None, int, int, StageEndpoints
]
"""What the tokens of a batch have in common of what `_draft` needs, in its order."""


def _common(
    like: TokenRequest,
    endpoints: StageEndpoints,
    iat: int,
    exp: int,
    key: SigningKey,
    caller_id: str | None,
) -> _Common:
    stage = like.stage
    return (
        like.capabilities,
        like.duration,
        _moment(exp),
        stage.text,
        stage.region,
        key.key_id,
        key.arn,
        caller_id,
        iat,
        exp,
        endpoints,
    )


def _draft(
    text: str,
    participant_id: str,
    attributes: Mapping[str, str],
    user_id: str | None,
    common: _Common,
) -> Draft:
    """Put a token that a key has signed together with its row."""
    (
        capabilities,
        duration,
        moment,
        stage_arn,
        region,
        key_id,
        key_arn,
        caller_id,
        iat,
        exp,
        endpoints,
    ) = common
    # Both in the order of their fields: naming them takes twice as long.
    token = IssuedToken(
        text,
        participant_id,
        user_id,
        attributes,
        capabilities,
        duration,
        moment,
        "local",
        key_arn,
        True,
    )
    row = LedgerRow._make(
        (
            participant_id,
            PARTICIPANT,
            stage_arn,
            region,
            user_id,
            key_id,
            key_arn,
            caller_id,
            "local",
            iat,
            exp,
            endpoints,
        )
    )
    return Draft(token, row)


def made_by_ivs(request: TokenRequest, made: IvsToken, now: int, caller_id: str | None) -> Draft:
    """Wrap a token that CreateParticipantToken returned at `now`."""
    token = IssuedToken(
        token=made.token,
        participant_id=made.participant_id,
        user_id=made.user_id,
        attributes=made.attributes,
        capabilities=made.capabilities,
        duration=made.duration,
        expiration_time=_moment(made.expiration_time),
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


@lru_cache(maxsize=1024)
def _moment(seconds: int) -> datetime:
    """Return the time of an `exp`, which many tokens of the same second share."""
    return datetime.fromtimestamp(seconds, UTC)
