"""The claims of a participant token (IVS guide, "Distribute Tokens", payload table).

`TokenRequest` is what a caller asked for, already valid (`validate.py` makes it). The claims are
assembled here, all ten of them: the guide contradicts itself on which may be left out, so none is,
except `user_id`, which the guide calls optional without contradiction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.limits import CAPABILITIES, DEFAULT_DURATION_MINUTES, TOKEN_VERSION

__all__ = [
    "ISSUERS",
    "Issuer",
    "StageEndpoints",
    "TokenRequest",
    "WantedToken",
    "participant_claims",
]

Issuer: TypeAlias = Literal["auto", "local", "ivs"]
ISSUERS: tuple[Issuer, ...] = ("auto", "local", "ivs")


@dataclass(frozen=True, slots=True)
class StageEndpoints:
    """`stage.endpoints` of GetStage: what IVS wants to see in `events_url` and `whip_url`."""

    events: str
    whip: str


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One participant token, asked for within all limits; `duration` is in minutes."""

    stage: StageArn
    user_id: str | None = None
    duration: int = DEFAULT_DURATION_MINUTES
    capabilities: tuple[str, ...] = CAPABILITIES
    attributes: Mapping[str, str] = field(default_factory=dict)
    issuer: Issuer = "auto"


@dataclass(frozen=True, slots=True)
class WantedToken:
    """What a caller asks for, each field valid by itself; None is what it left out.

    A policy turns it into a `TokenRequest` (`tokensvc.policy`): what a caller leaves out comes from
    its role and its rule.
    """

    stage: StageArn
    user_id: str | None = None
    role: str | None = None
    duration: int | None = None
    capabilities: tuple[str, ...] | None = None
    attributes: Mapping[str, str] | None = None
    issuer: Issuer | None = None


def participant_claims(
    request: TokenRequest, endpoints: StageEndpoints, *, participant_id: str, iat: int, exp: int
) -> dict[str, object]:
    """Return the payload of a participant token; `iat` and `exp` are whole Unix seconds.

    A capability that was not asked for is left out rather than set to false, as the guide does for
    subscribe-only participants.
    """
    claims: dict[str, object] = {
        "exp": exp,
        "iat": iat,
        "jti": participant_id,
        "resource": str(request.stage),
        "topic": request.stage.id,
        "events_url": endpoints.events,
        "whip_url": endpoints.whip,
        "capabilities": {_CAPABILITY_CLAIMS[name]: True for name in request.capabilities},
        "attributes": request.attributes,
        "version": TOKEN_VERSION,
    }
    if request.user_id is not None:
        claims["user_id"] = request.user_id
    return claims


_CAPABILITY_CLAIMS = {"PUBLISH": "allow_publish", "SUBSCRIBE": "allow_subscribe"}
