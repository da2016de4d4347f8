"""Requests to disconnect and to ban, parsed: JSON values in, valid asks out, faults collected.

Nobody is meant by leaving something out: whoever wants a whole stage says `"everybody": true`, so that
a participant id that was lost on its way does not empty the stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from tokensvc.errors import FieldError
from tokensvc.revocation.disconnects import MAX_BAN_SECONDS, MAX_REASON_CHARS, DisconnectAsk
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.fields import (
    FieldParser,
    invalid_fields,
    nul_character,
    parse_object,
    parse_stage_arn,
    parse_token_id,
    parse_user_id,
    region_not_served,
    require,
    shown_number,
    wrong_type,
)
from tokensvc.tokens.limits import MAX_USER_ID_CHARS

__all__ = [
    "BAN_FIELDS",
    "DISCONNECT_FIELDS",
    "BanAsk",
    "BanSubject",
    "parse_ban_request",
    "parse_ban_subject",
    "parse_disconnect_request",
    "parse_some_user_id",
]

_EVERYBODY_WHAT: Final = "is everybody on the stage meant? Then say true"
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class BanSubject:
    """Whom a ban is of: a user on a stage, a user everywhere, a participant, or a stage."""

    stage_arn: str | None
    user_id: str | None
    participant_id: str | None


@dataclass(frozen=True, slots=True)
class BanAsk:
    """A valid request to ban; `until` in Unix seconds, None for good."""

    subject: BanSubject
    until: float | None
    reason: str


def parse_disconnect_request(body: object, *, regions: Collection[str]) -> DisconnectAsk:
    """Parse a request: `stageArn`, and one of `participantId`, `userId` and `"everybody": true`.

    Raises InvalidRequestError with one entry in `errors` for every bad field.
    """
    errors: list[FieldError] = []
    values = parse_object(body, _DISCONNECT_PARSERS, "a disconnect", errors)
    require("stageArn", "the ARN of the stage", values, errors)
    _require_served(values, regions, errors)
    whom = [name for name in ("participantId", "userId", "everybody") if values.get(name)]
    if len(whom) > 1:
        errors.append(_conflict(whom[-1], whom[0]))
    elif not whom and not _names_any(errors, "participantId", "userId", "everybody"):
        detail = f"is required where there is neither participantId nor userId: {_EVERYBODY_WHAT}"
        errors.append(FieldError("everybody", "required", detail))
    if errors:
        raise invalid_fields(errors)
    stage: StageArn = values["stageArn"]
    reason, ban = values.get("reason", ""), values.get("ban")
    if "participantId" in whom:
        return DisconnectAsk.of_participant(stage, values["participantId"], reason=reason, ban=ban)
    if "userId" in whom:
        return DisconnectAsk.of_user(stage, values["userId"], reason=reason, ban=ban)
    return DisconnectAsk.of_stage(stage, reason=reason, ban=ban)


def parse_ban_request(body: object, *, regions: Collection[str], now: float) -> BanAsk:
    """Parse a request to ban; `now` in Unix seconds.

    `duration` (seconds, 0 for good) or `until` (RFC 3339); for good where neither is given. Raises
    InvalidRequestError with one entry in `errors` for every bad field.
    """
    errors: list[FieldError] = []
    values = parse_object(body, _BAN_PARSERS, "a ban", errors)
    _require_served(values, regions, errors)
    subject = _subject(values, errors)
    until: float | None = values.get("until")
    if until is not None and "duration" in values:
        errors.append(_conflict("until", "duration"))
    elif until is not None and not now < until <= now + MAX_BAN_SECONDS:
        detail = f"must be in the future, at most {MAX_BAN_SECONDS} seconds from now"
        errors.append(FieldError("until", "out_of_range", detail, MAX_BAN_SECONDS))
    if errors:
        raise invalid_fields(errors)
    if values.get("duration"):
        until = now + values["duration"]
    return BanAsk(subject, until, values.get("reason", ""))


def parse_ban_subject(body: object, *, regions: Collection[str]) -> BanSubject:
    """Parse whom a ban is of, as `parse_ban_request` does."""
    errors: list[FieldError] = []
    values = parse_object(body, _SUBJECT_PARSERS, "whom a ban is of", errors)
    _require_served(values, regions, errors)
    subject = _subject(values, errors)
    if errors:
        raise invalid_fields(errors)
    return subject


def parse_some_user_id(value: object, errors: list[FieldError]) -> str | None:
    """Return a user id that is not empty: one that is names nobody."""
    if value == "":
        detail = f"is empty; 1 to {MAX_USER_ID_CHARS} characters name a user"
        errors.append(FieldError("userId", "too_short", detail, 1))
        return None
    return parse_user_id(value, errors)


def _subject(values: Mapping[str, Any], errors: list[FieldError]) -> BanSubject:
    stage: StageArn | None = values.get("stageArn")
    user, participant = values.get("userId"), values.get("participantId")
    everybody = bool(values.get("everybody"))
    if participant is not None:
        # A participant is of one stage anyway, and its ban is looked up by its id alone.
        errors.extend(
            _conflict(name, "participantId")
            for name, given in (
                ("stageArn", stage is not None),
                ("userId", user is not None),
                ("everybody", everybody),
            )
            if given
        )
    elif user is not None and everybody:
        errors.append(_conflict("everybody", "userId"))
    elif user is None and not _names_any(errors, "userId", "participantId", "everybody"):
        if stage is None and not _names_any(errors, "stageArn"):
            detail = "is required, or participantId, or stageArn with everybody"
            errors.append(FieldError("userId", "required", detail))
        elif stage is not None and not everybody:
            detail = f"is required where a stageArn stands alone: {_EVERYBODY_WHAT}"
            errors.append(FieldError("everybody", "required", detail))
    return BanSubject(None if stage is None else str(stage), user, participant)


def _require_served(
    values: Mapping[str, Any], regions: Collection[str], errors: list[FieldError]
) -> None:
    stage: StageArn | None = values.get("stageArn")
    if stage is not None and stage.region not in regions:
        errors.append(region_not_served("stageArn", stage.region, regions))


def _names_any(errors: list[FieldError], *fields: str) -> bool:
    return any(error.field in fields for error in errors)


def _conflict(field: str, other: str) -> FieldError:
    return FieldError(field, "conflict", f"is not taken together with {other}", other)


def _parse_everybody(value: object, errors: list[FieldError]) -> bool | None:
    if type(value) is not bool:
        errors.append(wrong_type("everybody", "true", value))
        return None
    return value or None


def _parse_reason(value: object, errors: list[FieldError]) -> str | None:
    if type(value) is not str:
        errors.append(wrong_type("reason", "a string", value))
    elif len(value) > MAX_REASON_CHARS:
        detail = f"has {len(value)} characters; IVS allows {MAX_REASON_CHARS}"
        errors.append(FieldError("reason", "too_long", detail, MAX_REASON_CHARS))
    elif not value.isascii() and _has_lone_surrogate(value):
        detail = "holds a lone surrogate, which UTF-8 cannot carry"
        errors.append(FieldError("reason", "encoding", detail))
    elif "\0" in value:
        errors.append(nul_character("reason"))
    else:
        return value
    return None


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _parse_seconds(field: str) -> FieldParser:
    def parse(value: object, errors: list[FieldError]) -> int | None:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            errors.append(wrong_type(field, "a whole number of seconds", value))
        elif not 0 <= value <= MAX_BAN_SECONDS:
            detail = (
                f"is {shown_number(value)} seconds; 0 (for good) to {MAX_BAN_SECONDS} are allowed"
            )
            errors.append(FieldError(field, "out_of_range", detail, MAX_BAN_SECONDS))
        else:
            return value
        return None

    return parse


def _parse_until(value: object, errors: list[FieldError]) -> float | None:
    if type(value) is not str:
        errors.append(wrong_type("until", "a string", value))
        return None
    try:
        return msgspec.convert(value, _Moment).timestamp()
    except (msgspec.ValidationError, OverflowError):
        rule = "a time as in RFC 3339, such as 2026-09-01T12:00:00Z"
        errors.append(FieldError("until", "pattern", f"must be {rule}", rule))
        return None


_SUBJECT_PARSERS: Final[Mapping[str, FieldParser]] = {
    "stageArn": parse_stage_arn,
    "userId": parse_some_user_id,
    "participantId": parse_token_id("participantId"),
    "everybody": _parse_everybody,
}
_DISCONNECT_PARSERS: Final[Mapping[str, FieldParser]] = {
    **_SUBJECT_PARSERS,
    "reason": _parse_reason,
    "ban": _parse_seconds("ban"),
}
_BAN_PARSERS: Final[Mapping[str, FieldParser]] = {
    **_SUBJECT_PARSERS,
    "reason": _parse_reason,
    "duration": _parse_seconds("duration"),
    "until": _parse_until,
}
DISCONNECT_FIELDS: Final = frozenset(_DISCONNECT_PARSERS)
BAN_FIELDS: Final = frozenset(_BAN_PARSERS)
