"""From what boto3 returns to the values of `gateway.py`, or to IvsError where IVS left something out.

botocore does not check answers against its model: a missing member is simply not there. A token with
a wrong endpoint, or a key with no ARN, would be found out only when participants fail to join; so
everything the service relies on is looked at here, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from urllib.parse import urlsplit

from tokensvc.errors import IvsError
from tokensvc.ivs.gateway import (
    IvsToken,
    Participant,
    PublicKey,
    PublicKeySummary,
    Stage,
    StageSummary,
)
from tokensvc.tokens.claims import StageEndpoints, TokenRequest
from tokensvc.tokens.limits import MAX_ENDPOINT_CHARS

__all__ = [
    "nothing",
    "participant_token",
    "participants",
    "public_key",
    "public_key_summaries",
    "stage",
    "stage_summaries",
]

_EVENTS_SCHEMES = ("ws", "wss")
_WHIP_SCHEMES = ("http", "https")


def public_key(answer: Mapping[str, object]) -> PublicKey:
    """Read `publicKey` of ImportPublicKey and GetPublicKey; raises IvsError."""
    key = _mapping(answer, "publicKey")
    return PublicKey(
        arn=_text(key, "arn"),
        name=_text(key, "name", ""),
        public_key_pem=_text(key, "publicKeyMaterial"),
        fingerprint=_text(key, "fingerprint", ""),
        tags=_texts(key, "tags"),
    )


def public_key_summaries(answer: Mapping[str, object]) -> list[PublicKeySummary]:
    """Read one page of ListPublicKeys; raises IvsError."""
    return [
        PublicKeySummary(
            arn=_text(key, "arn"), name=_text(key, "name", ""), tags=_texts(key, "tags")
        )
        for key in _items(answer, "publicKeys")
    ]


def stage(answer: Mapping[str, object]) -> Stage:
    """Read `stage` of GetStage and CreateStage, with both endpoints; raises IvsError.

    `events` must be a ws or wss URL and `whip` an http or https one, of at most 2,048 characters
    (API model, StageEndpoint). The plain schemes are for local stand-ins.
    """
    found = _mapping(answer, "stage")
    endpoints = _mapping(found, "endpoints")
    return Stage(
        arn=_text(found, "arn"),
        name=_text(found, "name", ""),
        endpoints=StageEndpoints(
            events=_url(endpoints, "events", _EVENTS_SCHEMES),
            whip=_url(endpoints, "whip", _WHIP_SCHEMES),
        ),
        tags=_texts(found, "tags"),
        active_session_id=_text(found, "activeSessionId", "") or None,
    )


def stage_summaries(answer: Mapping[str, object]) -> list[StageSummary]:
    """Read one page of ListStages; raises IvsError."""
    return [
        StageSummary(
            arn=_text(item, "arn"), name=_text(item, "name", ""), tags=_texts(item, "tags")
        )
        for item in _items(answer, "stages")
    ]


def participants(answer: Mapping[str, object]) -> list[Participant]:
    """Read one page of ListParticipants; raises IvsError."""
    return [_participant(item) for item in _items(answer, "participants")]


def _participant(item: Mapping[str, object]) -> Participant:
    state = item.get("state")
    if state != "CONNECTED" and state != "DISCONNECTED":
        raise _unusable("state", "is neither CONNECTED nor DISCONNECTED")
    joined = item.get("firstJoinTime")
    return Participant(
        participant_id=_text(item, "participantId"),
        user_id=_text(item, "userId", "") or None,
        state=state,
        published=item.get("published") is True,
        first_join_time=joined.timestamp() if isinstance(joined, datetime) else None,
    )


def nothing(_: Mapping[str, object]) -> None:
    """Read an answer that has no members."""


def participant_token(answer: Mapping[str, object], request: TokenRequest) -> IvsToken:
    """Read `participantToken` of CreateParticipantToken; raises IvsError.

    What IVS does not repeat is as it was asked for. A token that allows more than was asked for is
    refused: the model does not say what an empty list of capabilities gives.
    """
    made = _mapping(answer, "participantToken")
    capabilities = made.get("capabilities", list(request.capabilities))
    if not isinstance(capabilities, list) or not set(capabilities) <= set(request.capabilities):
        raise _unusable("capabilities", "are not those that were asked for")
    duration = made.get("duration", request.duration)
    if not isinstance(duration, int):
        raise _unusable("duration", "is not a number")
    expires = made.get("expirationTime")
    if not isinstance(expires, datetime):
        raise _unusable("expirationTime", "is missing or not a time")
    return IvsToken(
        token=_text(made, "token"),
        participant_id=_text(made, "participantId"),
        user_id=_text(made, "userId", "") or request.user_id,
        attributes=_texts(made, "attributes") or request.attributes,
        duration=duration,
        capabilities=tuple(capabilities),
        expiration_time=int(expires.timestamp()),
    )


def _unusable(member: str, why: str) -> IvsError:
    return IvsError("Amazon IVS gave an answer that cannot be used.", member=member, why=why)


def _mapping(holder: Mapping[str, object], member: str) -> Mapping[str, object]:
    value = holder.get(member)
    if not isinstance(value, Mapping):
        raise _unusable(member, "is missing or not a structure")
    return value


def _items(holder: Mapping[str, object], member: str) -> Iterable[Mapping[str, object]]:
    value = holder.get(member)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _unusable(member, "is missing or not a list of structures")
    return value


def _text(holder: Mapping[str, object], member: str, default: str | None = None) -> str:
    value = holder.get(member, default)
    if not isinstance(value, str) or (default is None and not value):
        raise _unusable(member, "is missing or not a text")
    return value


def _texts(holder: Mapping[str, object], member: str) -> Mapping[str, str]:
    value = holder.get(member, {})
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise _unusable(member, "is not a map of texts")
    return dict(value)


def _url(holder: Mapping[str, object], member: str, schemes: tuple[str, ...]) -> str:
    value = _text(holder, member)
    if len(value) > MAX_ENDPOINT_CHARS:
        raise _unusable(member, f"has more than {MAX_ENDPOINT_CHARS} characters")
    if any(char.isspace() or not char.isprintable() for char in value):
        raise _unusable(member, "has white space or control characters")
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError as error:
        raise _unusable(member, "is not a URL") from error
    if parts.scheme not in schemes or not host:
        raise _unusable(member, f"is not a URL of {' or '.join(schemes)}")
    return value
