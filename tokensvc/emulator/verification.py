"""Whether IVS would take a token: the checks of the events socket, in IVS's codes.

This is an oracle for the service's tokens, so it shares no code with what makes or inspects them:
PyJWT and `cryptography` verify the signature, and the rules are written down here a second time, from
IVS's guide ("Distribute Tokens"), with the bounds of `tokensvc.tokens.limits`.

Where the guide is silent the stricter reading holds, so that a token which passes here relies on
nothing undocumented: claims, capabilities and duplicate names that the guide does not know are
refused, and an `iat` may lie at most 60 seconds ahead. An unknown `kid` gets the code of a wrong
signature, since the web SDK shows both alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tokensvc.tokens.limits import (
    ALGORITHM,
    MAX_ARN_CHARS,
    MAX_ATTRIBUTES_BYTES,
    MAX_CONNECTION_TTL_SECONDS,
    MAX_PARTICIPANT_TTL_SECONDS,
    MAX_TOKEN_CHARS,
    MAX_USER_ID_CHARS,
    SIGNATURE_BYTES,
    TOKEN_VERSION,
)

__all__ = [
    "MAX_FUTURE_IAT_SECONDS",
    "ConnectionClaims",
    "ParticipantClaims",
    "TokenRefusedError",
    "TokenVerifier",
]

MAX_FUTURE_IAT_SECONDS: Final = 60
"""How far `iat` may lie ahead of the emulator's clock. An assumption: IVS documents no tolerance."""

_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)", re.ASCII)
_KID: Final = re.compile(r"arn:aws:ivs:([a-z0-9-]+):([0-9]+):public-key/[a-zA-Z0-9-]+", re.ASCII)
_STAGE: Final = re.compile(r"arn:aws:ivs:([a-z0-9-]+):([0-9]+):stage/([a-zA-Z0-9-]+)", re.ASCII)
_TOKEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SIGNATURE_CHARS: Final = SIGNATURE_BYTES * 4 // 3

_PARTICIPANT_REQUIRED: Final = frozenset(
    {"exp", "iat", "jti", "resource", "topic", "events_url", "whip_url", "capabilities", "version"}
)
_PARTICIPANT_OPTIONAL: Final = frozenset({"attributes", "user_id"})
_CONNECTION_REQUIRED: Final = frozenset(
    {"exp", "iat", "jti", "account_id", "region", "events_url", "version"}
)
_CAPABILITIES: Final = {"allow_publish": "PUBLISH", "allow_subscribe": "SUBSCRIBE"}


class TokenRefusedError(Exception):
    """IVS would refuse; `code` is the code that clients are sent. Holds nothing of the token.

    `claims` are there where the token was proven to be the participant's, so that the refusal can
    be put on record.
    """

    def __init__(self, code: str, message: str, claims: ParticipantClaims | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.claims = claims


@dataclass(frozen=True, slots=True)
class ParticipantClaims:
    """What a participant token that IVS takes says; times are Unix seconds.

    `exchangeable` tells self-signed tokens from those of CreateParticipantToken, which can never be
    exchanged (User Guide, "Token Exchange").
    """

    stage_arn: str
    participant_id: str
    events_url: str
    whip_url: str
    expires_at: float
    capabilities: tuple[str, ...]
    attributes: Mapping[str, str]
    user_id: str | None
    exchangeable: bool

    @property
    def topic(self) -> str:
        """The stage's id."""
        return self.stage_arn.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ConnectionClaims:
    """What a connection token that IVS takes says."""

    token_id: str
    account: str
    region: str
    expires_at: int


class _Stage(Protocol):
    @property
    def whip_url(self) -> str: ...


class _PublicKey(Protocol):
    @property
    def public_key_pem(self) -> str: ...


class _Issued(Protocol):
    @property
    def stage_arn(self) -> str: ...
    @property
    def participant_id(self) -> str: ...
    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def expires_at(self) -> float: ...


class _World(Protocol):
    """What verification asks of the emulator's state."""

    def now(self) -> float: ...
    def stage(self, arn: str, /) -> _Stage | None: ...
    def public_key(self, arn: str, /) -> _PublicKey | None: ...
    def issued_token(self, text: str, /) -> _Issued | None: ...


class _Revocations(Protocol):
    def is_disconnected(self, stage_arn: str, participant_id: str, /) -> bool: ...
    def is_revoked(self, region: str, token_id: str, /) -> bool: ...


class TokenVerifier:
    """Judges tokens as of now, against the stages and public keys there are."""

    def __init__(self, world: _World, revocations: _Revocations, *, events_url: str) -> None:
        """`events_url` is the events endpoint of every stage."""
        self._world = world
        self._revocations = revocations
        self._events_url = events_url

    def participant(self, token: str | None) -> ParticipantClaims:
        """Return the claims of a participant token with which its participant may join now.

        Raises TokenRefusedError with TOKEN_MISSING, TOKEN_INVALID, TOKEN_INVALID_SIGNATURE,
        TOKEN_EXPIRED, STAGE_DELETED or PARTICIPANT_DISCONNECTED.
        """
        if not token:
            raise TokenRefusedError("TOKEN_MISSING", "no participant token")
        issued = self._world.issued_token(token)
        claims = self._signed(token) if issued is None else self._issued(issued)
        if self._world.now() >= claims.expires_at:
            raise TokenRefusedError("TOKEN_EXPIRED", "the token has expired", claims)
        self._check_stage(claims)
        if self._revocations.is_disconnected(claims.stage_arn, claims.participant_id):
            raise TokenRefusedError(
                "PARTICIPANT_DISCONNECTED", "the participant was disconnected", claims
            )
        return claims

    def connection(self, token: str | None) -> ConnectionClaims:
        """Return the claims of a connection token with which a shared connection may be opened now.

        Raises TokenRefusedError with TOKEN_MISSING, TOKEN_INVALID, TOKEN_INVALID_SIGNATURE,
        TOKEN_EXPIRED or TOKEN_REVOKED.
        """
        if not token:
            raise TokenRefusedError("TOKEN_MISSING", "no connection token")
        key_region, key_account, payload = self._verified_payload(token)
        _check_names(payload, _CONNECTION_REQUIRED, frozenset())
        expires_at = _expiry(payload, MAX_CONNECTION_TTL_SECONDS, self._world.now())
        claims = ConnectionClaims(
            token_id=_token_id(payload),
            account=_string(payload, "account_id"),
            region=_string(payload, "region"),
            expires_at=expires_at,
        )
        _check_version(payload)
        if claims.account != key_account or claims.region != key_region:
            raise _invalid("account_id and region must be those of the signing key")
        if payload["events_url"] != self._events_url:
            raise _invalid("events_url is not the events endpoint")
        if self._world.now() >= expires_at:
            raise TokenRefusedError("TOKEN_EXPIRED", "the token has expired")
        if self._revocations.is_revoked(claims.region, claims.token_id):
            raise TokenRefusedError("TOKEN_REVOKED", "the token has been revoked")
        return claims

    def _issued(self, issued: _Issued) -> ParticipantClaims:
        stage = self._world.stage(issued.stage_arn)
        return ParticipantClaims(
            stage_arn=issued.stage_arn,
            participant_id=issued.participant_id,
            events_url=self._events_url,
            whip_url="" if stage is None else stage.whip_url,
            expires_at=issued.expires_at,
            capabilities=issued.capabilities,
            attributes=issued.attributes,
            user_id=issued.user_id,
            exchangeable=False,
        )

    def _signed(self, token: str) -> ParticipantClaims:
        key_region, key_account, payload = self._verified_payload(token)
        _check_names(payload, _PARTICIPANT_REQUIRED, _PARTICIPANT_OPTIONAL)
        expires_at = _expiry(payload, MAX_PARTICIPANT_TTL_SECONDS, self._world.now())
        resource = _string(payload, "resource")
        stage = _STAGE.fullmatch(resource) if len(resource) <= MAX_ARN_CHARS else None
        if stage is None:
            raise _invalid("resource is not the ARN of a stage")
        if stage[1] != key_region or stage[2] != key_account:
            raise _invalid("the stage is not of the signing key's Region and account")
        if payload["topic"] != stage[3]:
            raise _invalid("topic is not the stage's id")
        _check_version(payload)
        return ParticipantClaims(
            stage_arn=resource,
            participant_id=_token_id(payload),
            events_url=_string(payload, "events_url"),
            whip_url=_string(payload, "whip_url"),
            expires_at=expires_at,
            capabilities=_capabilities(payload["capabilities"]),
            attributes=_attributes(payload.get("attributes", {})),
            user_id=_user_id(payload),
            exchangeable=True,
        )

    def _check_stage(self, claims: ParticipantClaims) -> None:
        stage = self._world.stage(claims.stage_arn)
        if stage is None:
            raise TokenRefusedError("STAGE_DELETED", "there is no such stage", claims)
        if claims.events_url != self._events_url or claims.whip_url != stage.whip_url:
            raise _invalid("events_url and whip_url must be the stage's endpoints")

    def _verified_payload(self, token: str) -> tuple[str, str, Mapping[str, Any]]:
        """Return Region and account of the key that signed, and the payload it signed."""
        if len(token) > MAX_TOKEN_CHARS:
            raise _invalid(f"a token has at most {MAX_TOKEN_CHARS} characters")
        segments = _TOKEN.fullmatch(token)
        if segments is None:
            raise _invalid("the token is not three segments of base64url")
        header = _json_object(_decoded(segments[1]), "header")
        if header.get("alg") != ALGORITHM or header.get("typ") != "JWT":
            raise _invalid(f"alg must be {ALGORITHM} and typ JWT")
        kid = header.get("kid")
        arn = _KID.fullmatch(kid) if isinstance(kid, str) and len(kid) <= MAX_ARN_CHARS else None
        if arn is None:
            raise _invalid("kid is not the ARN of a public key")
        key = self._world.public_key(arn[0])
        if key is None:
            raise TokenRefusedError("TOKEN_INVALID_SIGNATURE", "there is no such public key")
        if len(segments[3]) != _SIGNATURE_CHARS:
            raise TokenRefusedError("TOKEN_INVALID_SIGNATURE", "the signature is not 96 bytes")
        payload = _verify(token, key.public_key_pem)
        return arn[1], arn[2], _json_object(payload, "payload")


def _verify(token: str, public_key_pem: str) -> bytes:
    try:
        public_key = _load_public_key(public_key_pem)
        payload: bytes = jwt.PyJWS(algorithms=[ALGORITHM]).decode(
            token, public_key, algorithms=[ALGORITHM]
        )
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError) as error:
        raise TokenRefusedError(
            "TOKEN_INVALID_SIGNATURE", "the signature is not the key's"
        ) from error
    return payload


@lru_cache(maxsize=64)
def _load_public_key(pem: str) -> EllipticCurvePublicKey:
    key = load_pem_public_key(pem.encode("ascii"))
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("the public key is not of P-384")
    return key


def _invalid(message: str) -> TokenRefusedError:
    return TokenRefusedError("TOKEN_INVALID", message)


def _decoded(segment: str) -> bytes:
    try:
        return jwt.utils.base64url_decode(segment)
    except ValueError as error:
        raise _invalid("a segment is not base64url") from error


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
        )
        # A lone surrogate can be written as \ud800 but is no text that IVS could keep.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the {where} is not JSON without duplicate names") from error
    if not isinstance(value, dict):
        raise _invalid(f"the {where} is not a JSON object")
    return value


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check_names(
    payload: Mapping[str, Any], required: frozenset[str], optional: frozenset[str]
) -> None:
    for name in sorted(required):
        if name not in payload:
            raise _invalid(f"{name} is missing")
    if not payload.keys() <= required | optional:
        raise _invalid("there is a claim that tokens of this kind do not have")


def _expiry(payload: Mapping[str, Any], max_ttl: int, now: float) -> int:
    """Return `exp`, which may be past; the caller says that last, once the rest is in order."""
    issued_at, expires_at = payload["iat"], payload["exp"]
    if type(issued_at) is not int or type(expires_at) is not int:
        raise _invalid("exp and iat must be integers of Unix seconds")
    if not 0 < expires_at - issued_at <= max_ttl:
        raise _invalid(f"exp must be 1 to {max_ttl} seconds after iat")
    if issued_at > now + MAX_FUTURE_IAT_SECONDS:
        raise _invalid(f"iat is more than {MAX_FUTURE_IAT_SECONDS} seconds ahead")
    return expires_at


def _string(payload: Mapping[str, Any], name: str) -> str:
    value = payload[name]
    if not isinstance(value, str):
        raise _invalid(f"{name} must be a string")
    return value


def _token_id(payload: Mapping[str, Any]) -> str:
    value = _string(payload, "jti")
    if _TOKEN_ID.fullmatch(value) is None:
        raise _invalid("jti must be 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def _check_version(payload: Mapping[str, Any]) -> None:
    if payload["version"] != TOKEN_VERSION:
        raise _invalid(f'version must be the string "{TOKEN_VERSION}"')


def _capabilities(value: object) -> tuple[str, ...]:
    if not isinstance(value, dict) or not value.keys() <= _CAPABILITIES.keys():
        raise _invalid(f"capabilities must be an object of {', '.join(_CAPABILITIES)}")
    if not all(type(allowed) is bool for allowed in value.values()):
        raise _invalid("capabilities must be true or false")
    return tuple(name for claim, name in _CAPABILITIES.items() if value.get(claim) is True)


def _attributes(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid("attributes must be an object of strings")
    size = sum(len(name.encode()) + len(text.encode()) for name, text in value.items())
    if size > MAX_ATTRIBUTES_BYTES:
        raise _invalid(f"attributes have at most {MAX_ATTRIBUTES_BYTES} bytes of UTF-8")
    return value


def _user_id(payload: Mapping[str, Any]) -> str | None:
    if "user_id" not in payload:
        return None
    value = _string(payload, "user_id")
    if len(value) > MAX_USER_ID_CHARS:
        raise _invalid(f"user_id has at most {MAX_USER_ID_CHARS} characters")
    return value
