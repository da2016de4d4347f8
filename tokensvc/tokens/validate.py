"""From a caller's JSON to a `TokenRequest`, or to an error that names every bad field.

Input is what a JSON decoder returns. All fields are looked at, so that one answer tells the caller
everything that is wrong; each problem names its field, a stable code, and the limit that was crossed.
`null` for an optional field means that it was not given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.tokens.arn import InvalidArnError, StageArn, cached_stage_arn
from tokensvc.tokens.claims import ISSUERS, TokenRequest
from tokensvc.tokens.limits import (
    CAPABILITIES,
    DEFAULT_DURATION_MINUTES,
    MAX_ATTRIBUTES_BYTES,
    MAX_DURATION_MINUTES,
    MAX_USER_ID_CHARS,
    MIN_DURATION_MINUTES,
)

__all__ = ["TOKEN_REQUEST_FIELDS", "parse_defaults", "parse_token_request"]

TOKEN_REQUEST_FIELDS = (
    "stageArn",
    "userId",
    "duration",
    "capabilities",
    "attributes",
    "issuer",
)


def parse_token_request(
    body: object,
    *,
    regions: Collection[str],
    max_duration: int = MAX_DURATION_MINUTES,
    defaults: Mapping[str, object] | None = None,
) -> TokenRequest:
    """Parse one token request.

    `regions` are those that are served, `max_duration` (minutes) is the operator's bound, at most
    IVS's own, and `defaults` are fields of a batch that stand in where `body` has none.

    Raises InvalidRequestError with one entry in `errors` for every bad field.
    """
    if type(body) is not dict:
        raise InvalidRequestError(
            f"The request must be a JSON object, not {_json_type(body)}.",
            errors=(FieldError("", "type", "must be a JSON object"),),
        )
    fields = body if defaults is None else _merge(body, defaults)
    errors: list[FieldError] = []
    values = _parse_fields(fields, regions, max_duration, errors)
    if "stageArn" not in values and not any(error.field == "stageArn" for error in errors):
        errors.insert(0, FieldError("stageArn", "required", "is required: the ARN of the stage"))
    if errors:
        raise _invalid(errors)
    return TokenRequest(
        stage=values["stageArn"],
        user_id=values.get("userId"),
        duration=values.get("duration", min(DEFAULT_DURATION_MINUTES, max_duration)),
        capabilities=values.get("capabilities", CAPABILITIES),
        attributes=values.get("attributes", {}),
        issuer=values.get("issuer", "auto"),
    )


def parse_defaults(
    body: object, *, regions: Collection[str], max_duration: int = MAX_DURATION_MINUTES
) -> Mapping[str, object]:
    """Check a batch's `defaults` once, for the whole batch, and return them.

    Raises InvalidRequestError whose fields begin with `defaults`.
    """
    if body is None:
        return {}
    if type(body) is not dict:
        raise _invalid([FieldError("defaults", "type", "must be a JSON object")])
    errors: list[FieldError] = []
    _parse_fields(body, regions, max_duration, errors)
    if errors:
        raise _invalid(
            [FieldError(f"defaults.{e.field}", e.code, e.detail, e.limit) for e in errors]
        )
    return body


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
            errors.append(_unknown_field(name))
        elif value is None:
            if name == "stageArn":
                errors.append(FieldError(name, "required", "is required: the ARN of the stage"))
        else:
            parsed = parser(value, errors)
            if parsed is not None:
                values[name] = parsed
    stage: StageArn | None = values.get("stageArn")
    if stage is not None and stage.region not in regions:
        errors.append(_region_not_served(stage.region, regions))
    duration: int | None = values.get("duration")
    if duration is not None and duration > max_duration:
        errors.append(_too_long(duration, max_duration))
    return values


def _parse_stage_arn(value: object, errors: list[FieldError]) -> StageArn | None:
    if type(value) is not str:
        errors.append(_wrong_type("stageArn", "a string", value))
        return None
    try:
        return cached_stage_arn(value)
    except InvalidArnError as error:
        errors.append(FieldError("stageArn", "pattern", str(error)))
        return None


def _parse_user_id(value: object, errors: list[FieldError]) -> str | None:
    if type(value) is not str:
        errors.append(_wrong_type("userId", "a string", value))
        return None
    if len(value) > MAX_USER_ID_CHARS:
        errors.append(
            FieldError(
                "userId",
                "too_long",
                f"has {len(value)} characters; IVS allows {MAX_USER_ID_CHARS}",
                MAX_USER_ID_CHARS,
            )
        )
        return None
    if _utf8_length(value) is None:
        errors.append(_lone_surrogate("userId"))
        return None
    return value


def _parse_duration(value: object, errors: list[FieldError]) -> int | None:
    if type(value) is float and value.is_integer():
        # JSON Schema counts 5.0 among the integers, so a caller may have meant it.
        value = int(value)
    if type(value) is not int:
        errors.append(_wrong_type("duration", "a whole number of minutes", value))
        return None
    if value < MIN_DURATION_MINUTES:
        errors.append(
            FieldError(
                "duration",
                "too_small",
                f"is {_shown(value)} minutes; the least is {MIN_DURATION_MINUTES}",
                MIN_DURATION_MINUTES,
            )
        )
        return None
    return value


def _parse_capabilities(value: object, errors: list[FieldError]) -> tuple[str, ...] | None:
    if type(value) is not list:
        errors.append(_wrong_type("capabilities", "an array of strings", value))
        return None
    found = len(errors)
    for index, item in enumerate(value[: len(CAPABILITIES) + 1]):
        if item not in CAPABILITIES:
            errors.append(
                FieldError(
                    f"capabilities[{index}]",
                    "unknown_value",
                    "must be PUBLISH or SUBSCRIBE",
                    ", ".join(CAPABILITIES),
                )
            )
        elif item in value[:index]:
            errors.append(
                FieldError(f"capabilities[{index}]", "duplicate", f"names {item} a second time")
            )
    if len(value) > len(CAPABILITIES):
        errors.append(
            FieldError(
                "capabilities",
                "too_many",
                f"has {len(value)} items; IVS knows {len(CAPABILITIES)}",
                len(CAPABILITIES),
            )
        )
    if len(errors) > found:
        return None
    return tuple(name for name in CAPABILITIES if name in value)


def _parse_attributes(value: object, errors: list[FieldError]) -> Mapping[str, str] | None:
    if type(value) is not dict:
        errors.append(_wrong_type("attributes", "an object of strings", value))
        return None
    found = len(errors)
    size = 0
    for name, text in value.items():
        name_bytes = _utf8_length(name)
        if name_bytes is None:
            errors.append(_lone_surrogate("attributes"))
            continue
        if type(text) is not str:
            errors.append(_wrong_type(_attribute(name), "a string", text))
            continue
        text_bytes = _utf8_length(text)
        if text_bytes is None:
            errors.append(_lone_surrogate(_attribute(name)))
            continue
        size += name_bytes + text_bytes
        if len(errors) - found >= _MAX_REPORTED:
            break
    if size > MAX_ATTRIBUTES_BYTES:
        errors.append(
            FieldError(
                "attributes",
                "too_large",
                f"keys and values have {size} bytes of UTF-8 in all; "
                f"IVS allows {MAX_ATTRIBUTES_BYTES}",
                MAX_ATTRIBUTES_BYTES,
            )
        )
    return value if len(errors) == found else None


def _parse_issuer(value: object, errors: list[FieldError]) -> str | None:
    if type(value) is not str:
        errors.append(_wrong_type("issuer", "a string", value))
        return None
    if value not in ISSUERS:
        errors.append(
            FieldError("issuer", "unknown_value", "must be auto, local or ivs", ", ".join(ISSUERS))
        )
        return None
    return value


_PARSERS: dict[str, Callable[[object, list[FieldError]], Any]] = {
    "stageArn": _parse_stage_arn,
    "userId": _parse_user_id,
    "duration": _parse_duration,
    "capabilities": _parse_capabilities,
    "attributes": _parse_attributes,
    "issuer": _parse_issuer,
}

_MAX_REPORTED = 20
_MAX_SHOWN_CHARS = 64


def _invalid(errors: list[FieldError]) -> InvalidRequestError:
    shown = errors[:_MAX_REPORTED]
    detail = "; ".join(f"{error.field}: {error.detail}" for error in shown[:3])
    more = len(errors) - min(len(shown), 3)
    if more:
        detail += f"; and {more} more"
    return InvalidRequestError(detail, errors=tuple(shown))


def _utf8_length(text: str) -> int | None:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def _lone_surrogate(field: str) -> FieldError:
    return FieldError(field, "encoding", "holds a lone surrogate, which UTF-8 cannot carry")


def _attribute(name: str) -> str:
    return f"attributes.{name[:_MAX_SHOWN_CHARS]}"


def _wrong_type(field: str, wanted: str, value: object) -> FieldError:
    return FieldError(field, "type", f"must be {wanted}, not {_json_type(value)}")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _shown(number: int) -> str:
    # int() to text is bounded by Python, and an absurd number need not be echoed in full.
    return str(number) if abs(number) < 10**12 else "far outside"


def _too_long(duration: int, max_duration: int) -> FieldError:
    whose = "IVS allows" if max_duration >= MAX_DURATION_MINUTES else "TOKENSVC_MAX_DURATION allows"
    return FieldError(
        "duration",
        "too_large",
        f"is {_shown(duration)} minutes; {whose} {max_duration}",
        max_duration,
    )


def _region_not_served(region: str, regions: Collection[str]) -> FieldError:
    served = ", ".join(sorted(regions))
    return FieldError(
        "stageArn",
        "region_not_served",
        f"is in Region {region}; this service serves {served} (TOKENSVC_REGIONS)",
        served,
    )


def _unknown_field(name: str) -> FieldError:
    shown = name[:_MAX_SHOWN_CHARS].encode("utf-8", "replace").decode("utf-8")
    close = get_close_matches(shown, TOKEN_REQUEST_FIELDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return FieldError(
        shown, "unknown_field", f"is not a field of a token request{hint}", ", ".join(_PARSERS)
    )
