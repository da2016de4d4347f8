"""The claims of a participant token (IVS guide, "Distribute Tokens", payload table).

`TokenRequest` is what a caller asked for, already valid (`validate.py` makes it). The claims are
assembled here, all ten of them: the guide contradicts itself on which may be left out, so none is,
except `user_id`, which the guide calls optional without contradiction.

Most of a payload is the same for all tokens of a stage. That part stands first, and is encoded once:
base64 turns three bytes at a time, so what is left of it goes before the part that is each token's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import msgspec

from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.jws import ascii_json, base64url
from tokensvc.tokens.limits import CAPABILITIES, DEFAULT_DURATION_MINUTES, TOKEN_VERSION

__all__ = [
    "ISSUERS",
    "Issuer",
    "StageEndpoints",
    "TokenRequest",
    "WantedToken",
    "beginning_of_payloads",
    "participant_payload",
    "rest_of_payload",
]

Issuer: TypeAlias = Literal["auto", "local", "ivs"]
ISSUERS: tuple[Issuer, ...] = ("auto", "local", "ivs")


class StageEndpoints(msgspec.Struct, frozen=True, gc=False):
    """`stage.endpoints` of GetStage: what IVS wants to see in `events_url` and `whip_url`."""

    events: str
    whip: str


class TokenRequest(msgspec.Struct, frozen=True, gc=False):
    """One participant token, asked for within all limits; `duration` is in minutes."""

    stage: StageArn
    user_id: str | None = None
    duration: int = DEFAULT_DURATION_MINUTES
    capabilities: tuple[str, ...] = CAPABILITIES
    attributes: Mapping[str, str] = msgspec.field(default_factory=dict)
    issuer: Issuer = "auto"


class WantedToken(msgspec.Struct, frozen=True, gc=False):
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


def participant_payload(
    request: TokenRequest, endpoints: StageEndpoints, *, participant_id: str, iat: int, exp: int
) -> tuple[bytes, bytes]:
    """Return the encoded payload of a participant token: what all of its stage share, and the rest.

    `iat` and `exp` are whole Unix seconds. A capability that was not asked for is left out rather than
    set to false, as the guide does for subscribe-only participants. Raises UnicodeEncodeError for a lone
    surrogate.
    """
    shared, left = _shared_part(request.stage, endpoints, request.capabilities)
    left += _times(iat, exp)
    return shared, rest_of_payload(left, participant_id, request.attributes, request.user_id)


def beginning_of_payloads(
    request: TokenRequest, endpoints: StageEndpoints, *, iat: int, exp: int
) -> tuple[bytes, bytes]:
    """Return how payloads begin that differ in participant, user and attributes alone.

    That is what is encoded already, and the bytes that `rest_of_payload` encodes with the rest.
    """
    encoded, left = _shared_part(request.stage, endpoints, request.capabilities)
    more, left = _encode_whole(left + _times(iat, exp))
    return encoded + more, left


def rest_of_payload(
    left: bytes, participant_id: str, attributes: Mapping[str, str], user_id: str | None
) -> bytes:
    """Return the rest of a payload that begins so; both are what `participant_payload` returns, in all."""
    own = _OwnClaims(participant_id, attributes, user_id)
    return base64url(left + ascii_json(own)[1:])


def _times(iat: int, exp: int) -> bytes:
    return b'"exp":%d,"iat":%d,' % (exp, iat)


class _OwnClaims(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    jti: str
    attributes: Mapping[str, str]
    user_id: str | None = None


@lru_cache(maxsize=4096)
def _shared_part(
    stage: StageArn, endpoints: StageEndpoints, capabilities: tuple[str, ...]
) -> tuple[bytes, bytes]:
    """Return the beginning of a payload: what is encoded already, and the bytes that are left."""
    shared = {
        "resource": str(stage),
        "topic": stage.id,
        "events_url": endpoints.events,
        "whip_url": endpoints.whip,
        "capabilities": {_CAPABILITY_CLAIMS[name]: True for name in capabilities},
        "version": TOKEN_VERSION,
    }
    return _encode_whole(ascii_json(shared)[:-1] + b",")


def _encode_whole(text: bytes) -> tuple[bytes, bytes]:
    """Encode as much of `text` as base64 does without what follows; return the rest as it is."""
    whole = len(text) - len(text) % _BASE64_BLOCK
    return base64url(text[:whole]), text[whole:]


_BASE64_BLOCK: Final = 3
_CAPABILITY_CLAIMS: Final = {"PUBLISH": "allow_publish", "SUBSCRIBE": "allow_subscribe"}
