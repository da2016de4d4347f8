"""The participant tokens that IVS issues itself (CreateParticipantToken, CreateStage).

They look like JWTs, with `alg` KMS and version 0.0, and are opaque: what stands where a signature
would be is random, and a token is recognised because its hash is remembered.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tokensvc.emulator.records import IssuedToken, StageRecord
from tokensvc.emulator.world import World
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.limits import CAPABILITIES, DEFAULT_DURATION_MINUTES

__all__ = ["NewToken", "issue_token"]

_HEADER: Final = {"alg": "KMS", "typ": "JWT"}
_VERSION: Final = "0.0"
_SCALAR_BITS: Final = 384


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just issued, and the request's members that IVS repeats."""

    token: str
    participant_id: str
    duration: int
    expires_at: int
    request: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"NewToken(participant_id={self.participant_id!r})"

    def members(self) -> dict[str, Any]:
        """Return the ParticipantToken of the model, without its `expirationTime`."""
        repeated = {
            name: self.request[name] for name in ("userId", "attributes") if name in self.request
        }
        return {
            "participantId": self.participant_id,
            "token": self.token,
            "duration": self.duration,
            "capabilities": self.request.get("capabilities", list(CAPABILITIES)),
            **repeated,
        }


def issue_token(world: World, stage: StageRecord, request: Mapping[str, Any]) -> NewToken:
    """Issue a token for a new participant of `stage`; `request` has the model's token members."""
    now = int(world.now())
    duration = request.get("duration", DEFAULT_DURATION_MINUTES)
    capabilities = request.get("capabilities", list(CAPABILITIES))
    participant_id = new_participant_id()
    claims = {
        "exp": now + duration * 60,
        "iat": now,
        "jti": participant_id,
        "resource": stage.arn,
        "topic": stage.id,
        "events_url": world.config.events_url,
        "whip_url": stage.whip_url,
        "capabilities": {
            "allow_publish": "PUBLISH" in capabilities,
            "allow_subscribe": "SUBSCRIBE" in capabilities,
        },
        "version": _VERSION,
    }
    if "userId" in request:
        claims["user_id"] = request["userId"]
    if "attributes" in request:
        claims["attributes"] = request["attributes"]
    token = _opaque(claims)
    world.remember_token(
        token,
        IssuedToken(
            stage_arn=stage.arn,
            participant_id=participant_id,
            capabilities=tuple(capabilities),
            issued_at=float(now),
            expires_at=float(now + duration * 60),
            user_id=request.get("userId"),
            attributes=dict(request.get("attributes", {})),
        ),
    )
    return NewToken(token, participant_id, duration, now + duration * 60, request)


def _opaque(claims: Mapping[str, Any]) -> str:
    signature = encode_dss_signature(secrets.randbits(_SCALAR_BITS), secrets.randbits(_SCALAR_BITS))
    return ".".join(
        jwt.utils.base64url_encode(part).decode("ascii")
        for part in (msgspec.json.encode(_HEADER), msgspec.json.encode(claims), signature)
    )
