"""From a caller's JSON to a `WantedToken`, or to an error that names every bad field.

Input is what a JSON decoder returns. All fields are looked at, so that one answer tells the caller
everything that is wrong; each problem names its field, a stable code, and the limit that was crossed.
`null` for an optional field means that it was not given.

Nearly every request is right, and that is found out in one go (`plain.py`); the field parsers here then
have nothing to do. They judge what is left: whatever is wrong, and what is right in an unusual way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.fields import (
    invalid_fields,
    json_type,
    parse_attributes,
    parse_capabilities,
    parse_duration,
    parse_issuer,
    parse_role,
    parse_stage_arn,
    parse_user_id,
    region_not_served,
    too_long,
    unknown_field,
)
from tokensvc.tokens.limits import CAPABILITIES, DEFAULT_DURATION_MINUTES, MAX_DURATION_MINUTES
from tokensvc.tokens.plain import NO_DEFAULTS, PlainFields, plain_fields, plainly_wanted

__all__ = [
    "NOTHING",
    "TOKEN_REQUEST_FIELDS",
    "Defaults",
    "complete",
    "parse_defaults",
    "parse_token_request",
    "parse_wanted_token",
]

TOKEN_REQUEST_FIELDS = (
    "stageArn",
    "userId",
    "role",
    "duration",
    "capabilities",
    "attributes",
    "issuer",
)


class Defaults(msgspec.Struct, frozen=True):
    """Fields of a batch that stand in where an item has none: as they came, and as they were read."""

    fields: Mapping[str, object]
    plain: PlainFields | None
    """None where they are right in an unusual way."""


NOTHING: Final = Defaults({}, NO_DEFAULTS)


def parse_wanted_token(
    body: object,
    *,
    regions: Collection[str],
    max_duration: int = MAX_DURATION_MINUTES,
    defaults: Defaults = NOTHING,
) -> WantedToken:
    """Parse one token request; what it leaves out stays open for a policy to fill in.

    `regions` are those that are served, `max_duration` (minutes) is the operator's bound, at most
    IVS's own, and `defaults` are fields of a batch that stand in where `body` has none.

    Raises InvalidRequestError with one entry in `errors` for every bad field.
    """
    found = plain_fields(body)
    if found is not None and defaults.plain is not None:
        wanted = plainly_wanted(found, defaults.plain, regions, max_duration)
        if wanted is not None:
            return wanted
    if type(body) is not dict:
        raise InvalidRequestError(
            f"The request must be a JSON object, not {json_type(body)}.",
            errors=(FieldError("", "type", "must be a JSON object"),),
        )
    fields = _merge(body, defaults.fields) if defaults.fields else body
    errors: list[FieldError] = []
    values = _parse_fields(fields, regions, max_duration, errors)
    if "stageArn" not in values and not any(error.field == "stageArn" for error in errors):
        errors.insert(0, FieldError("stageArn", "required", "is required: the ARN of the stage"))
    if errors:
        raise invalid_fields(errors)
    return WantedToken(
        stage=values["stageArn"],
        user_id=values.get("userId"),
        role=values.get("role"),
        duration=values.get("duration"),
        capabilities=values.get("capabilities"),
        attributes=values.get("attributes"),
        issuer=values.get("issuer"),
    )


def parse_token_request(
    body: object,
    *,
    regions: Collection[str],
    max_duration: int = MAX_DURATION_MINUTES,
    defaults: Defaults = NOTHING,
) -> TokenRequest:
    """Parse one token request that no policy looks at; it cannot name a role.

    Raises InvalidRequestError as `parse_wanted_token` does.
    """
    return complete(
        parse_wanted_token(body, regions=regions, max_duration=max_duration, defaults=defaults),
        max_duration,
    )


def complete(wanted: WantedToken, max_duration: int = MAX_DURATION_MINUTES) -> TokenRequest:
    """Fill what `wanted` leaves out with IVS's defaults; raises InvalidRequestError for a role."""
    if wanted.role is not None:
        detail = "means something only under a policy file (TOKENSVC_POLICY_FILE)"
        raise invalid_fields([FieldError("role", "no_policy", detail)])
    return TokenRequest(
        stage=wanted.stage,
        user_id=wanted.user_id,
        duration=wanted.duration or min(DEFAULT_DURATION_MINUTES, max_duration),
        capabilities=CAPABILITIES if wanted.capabilities is None else wanted.capabilities,
        attributes=wanted.attributes or {},
        issuer=wanted.issuer or "auto",
    )


def parse_defaults(
    body: object, *, regions: Collection[str], max_duration: int = MAX_DURATION_MINUTES
) -> Defaults:
    """Check a batch's `defaults` once, for the whole batch, and return them.

    Raises InvalidRequestError whose fields begin with `defaults`.
    """
    if body is None:
        return NOTHING
    if type(body) is not dict:
        raise invalid_fields([FieldError("defaults", "type", "must be a JSON object")])
    errors: list[FieldError] = []
    _parse_fields(body, regions, max_duration, errors)
    if errors:
        raise invalid_fields(
            [FieldError(f"defaults.{e.field}", e.code, e.detail, e.limit) for e in errors]
        )
    return Defaults(body, plain_fields(body))


def _merge(body: dict[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    return {**defaults, **{name: value for name, value in body.items() if value is not None}}


def _parse_fields(
    fields: Mapping[str, object],
    regions: Collection[str],
    max_duration: int,
    errors: list[FieldError],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in fields.items():
        parser = _PARSERS.get(name)
        if parser is None:
            unknown_field(name, TOKEN_REQUEST_FIELDS, "a token request", errors)
        elif value is not None:
            parsed = parser(value, errors)
            if parsed is not None:
                values[name] = parsed
    stage: StageArn | None = values.get("stageArn")
    if stage is not None and stage.region not in regions:
        errors.append(region_not_served("stageArn", stage.region, regions))
    duration: int | None = values.get("duration")
    if duration is not None and duration > max_duration:
        errors.append(too_long(duration, max_duration))
    return values


_PARSERS: dict[str, Callable[[object, list[FieldError]], Any]] = {
    "stageArn": parse_stage_arn,
    "userId": parse_user_id,
    "role": parse_role,
    "duration": parse_duration,
    "capabilities": parse_capabilities,
    "attributes": parse_attributes,
    "issuer": parse_issuer,
}
