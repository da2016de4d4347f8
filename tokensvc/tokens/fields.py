"""The fields of requests, one parser each: JSON values in, our values out, faults collected.

A parser takes the value as decoded JSON and the list of faults found so far; where the value breaks a
rule it adds a FieldError that names field and limit, and returns None. None of them raises. Limits are
those of IVS (IVS guide, "Distribute Tokens"; RealTimeAPIReference, CreateParticipantToken).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.tokens.arn import InvalidArnError, StageArn, cached_stage_arn
from tokensvc.tokens.claims import ISSUERS
from tokensvc.tokens.ids import is_token_id
from tokensvc.tokens.limits import (
    CAPABILITIES,
    MAX_ATTRIBUTES_BYTES,
    MAX_DURATION_MINUTES,
    MAX_ROLE_CHARS,
    MAX_TOKEN_ID_CHARS,
    MAX_USER_ID_CHARS,
    MIN_DURATION_MINUTES,
)

__all__ = [
    "MAX_SHOWN_CHARS",
    "FieldParser",
    "invalid_fields",
    "is_role",
    "json_type",
    "nul_character",
    "parse_attributes",
    "parse_capabilities",
    "parse_duration",
    "parse_issuer",
    "parse_object",
    "parse_role",
    "parse_stage_arn",
    "parse_token_id",
    "parse_user_id",
    "region_not_served",
    "require",
    "shown_number",
    "too_long",
    "unknown_field",
    "wrong_type",
]

FieldParser: TypeAlias = Callable[[object, list[FieldError]], Any]

_MAX_REPORTED = 20
_ONE_MORE = FieldError("", "unknown_field", "is not a field")
_ROLE = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ROLE_CHARS}}}", re.ASCII)
MAX_SHOWN_CHARS = 64
"""Of a name that a caller made up, as much is repeated."""


def parse_stage_arn(value: object, errors: list[FieldError]) -> StageArn | None:
    """Return the stage ARN."""
    if type(value) is not str:
        errors.append(wrong_type("stageArn", "a string", value))
        return None
    try:
        return cached_stage_arn(value)
    except InvalidArnError as error:
        errors.append(FieldError("stageArn", "pattern", str(error)))
        return None


def parse_user_id(value: object, errors: list[FieldError]) -> str | None:
    """Return the user id: at most 128 characters."""
    if type(value) is not str:
        errors.append(wrong_type("userId", "a string", value))
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
    if "\0" in value:
        errors.append(nul_character("userId"))
        return None
    return value


def parse_duration(value: object, errors: list[FieldError]) -> int | None:
    """Return minutes, at least 1; the upper bound depends on the kind of token."""
    if type(value) is float and value.is_integer():
        # JSON Schema counts 5.0 among the integers, so a caller may have meant it.
        value = int(value)
    if type(value) is not int:
        errors.append(wrong_type("duration", "a whole number of minutes", value))
        return None
    if value < MIN_DURATION_MINUTES:
        errors.append(
            FieldError(
                "duration",
                "too_small",
                f"is {shown_number(value)} minutes; the least is {MIN_DURATION_MINUTES}",
                MIN_DURATION_MINUTES,
            )
        )
        return None
    return value


def parse_capabilities(value: object, errors: list[FieldError]) -> tuple[str, ...] | None:
    """Return the capabilities in IVS's order."""
    if type(value) is not list:
        errors.append(wrong_type("capabilities", "an array of strings", value))
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


def parse_attributes(value: object, errors: list[FieldError]) -> Mapping[str, str] | None:
    """Return the attributes: strings, 1 KB of UTF-8 in all."""
    if type(value) is not dict:
        errors.append(wrong_type("attributes", "an object of strings", value))
        return None
    found = len(errors)
    size = 0
    for name, text in value.items():
        if len(errors) - found >= _MAX_REPORTED:
            break
        name_bytes = _utf8_length(name)
        if name_bytes is None:
            errors.append(_lone_surrogate("attributes"))
            continue
        if type(text) is not str:
            errors.append(wrong_type(_attribute(name), "a string", text))
            continue
        text_bytes = _utf8_length(text)
        if text_bytes is None:
            errors.append(_lone_surrogate(_attribute(name)))
            continue
        size += name_bytes + text_bytes
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


def parse_issuer(value: object, errors: list[FieldError]) -> str | None:
    """Return who is to issue the token."""
    if type(value) is not str:
        errors.append(wrong_type("issuer", "a string", value))
        return None
    if value not in ISSUERS:
        errors.append(
            FieldError("issuer", "unknown_value", "must be auto, local or ivs", ", ".join(ISSUERS))
        )
        return None
    return value


def parse_role(value: object, errors: list[FieldError]) -> str | None:
    """Return the name of a role: 1 to 64 of `[A-Za-z0-9_-]`; whether there is one, policy knows."""
    if type(value) is not str:
        errors.append(wrong_type("role", "a string", value))
        return None
    if not is_role(value):
        rule = f"1 to {MAX_ROLE_CHARS} of a-z, A-Z, 0-9, _ and -"
        errors.append(FieldError("role", "pattern", f"must be {rule}", rule))
        return None
    return value


def is_role(text: str) -> bool:
    """Tell whether `text` can be the name of a role."""
    return _ROLE.fullmatch(text) is not None


def invalid_fields(errors: list[FieldError]) -> InvalidRequestError:
    """Return the error that names every fault in `errors`, the first three in its detail."""
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


def nul_character(field: str) -> FieldError:
    """Return the error for text with U+0000 in it, which PostgreSQL cannot keep."""
    return FieldError(field, "encoding", "holds U+0000, which the store cannot keep")


def _lone_surrogate(field: str) -> FieldError:
    return FieldError(field, "encoding", "holds a lone surrogate, which UTF-8 cannot carry")


def _attribute(name: str) -> str:
    return f"attributes.{name[:MAX_SHOWN_CHARS]}"


def wrong_type(field: str, wanted: str, value: object) -> FieldError:
    """Return the fault of a value of another JSON type than `wanted`."""
    return FieldError(field, "type", f"must be {wanted}, not {json_type(value)}")


def json_type(value: object) -> str:
    """Return what JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def shown_number(number: int) -> str:
    """Return a number as it may be repeated to whoever sent it."""
    # int() to text is bounded by Python, and an absurd number need not be echoed in full.
    return str(number) if abs(number) < 10**12 else "far outside"


def parse_object(
    body: object, parsers: Mapping[str, FieldParser], of: str, errors: list[FieldError]
) -> dict[str, Any]:
    """Return the fields of a JSON object by the parsers named for them; `null` is not given.

    Raises InvalidRequestError for what is not an object.
    """
    if type(body) is not dict:
        raise InvalidRequestError(
            f"The request must be a JSON object, not {json_type(body)}.",
            errors=(FieldError("", "type", "must be a JSON object"),),
        )
    values: dict[str, Any] = {}
    for name, value in body.items():
        parser = parsers.get(name)
        if parser is None:
            unknown_field(name, tuple(parsers), of, errors)
        elif value is not None:
            parsed = parser(value, errors)
            if parsed is not None:
                values[name] = parsed
    return values


def require(field: str, what: str, values: Mapping[str, object], errors: list[FieldError]) -> None:
    """Add a fault where `field` was not given; one that was given and is wrong has its own."""
    if field not in values and not any(error.field.startswith(field) for error in errors):
        errors.insert(0, FieldError(field, "required", f"is required: {what}"))


def parse_token_id(field: str) -> FieldParser:
    """Return a parser of a `jti`: 1 to 64 of `[A-Za-z0-9_-]`."""

    def parse(value: object, errors: list[FieldError]) -> str | None:
        if type(value) is not str:
            errors.append(wrong_type(field, "a string", value))
        elif not is_token_id(value):
            rule = f"1 to {MAX_TOKEN_ID_CHARS} of a-z, A-Z, 0-9, _ and -"
            errors.append(FieldError(field, "pattern", f"must be {rule}", rule))
        else:
            return value
        return None

    return parse


def too_long(
    duration: int,
    longest: int,
    *,
    ivs_allows: int = MAX_DURATION_MINUTES,
    setting: str = "TOKENSVC_MAX_DURATION",
) -> FieldError:
    """Return the fault of a `duration` beyond `longest` minutes, and say who set that bound."""
    whose = "IVS allows" if longest >= ivs_allows else f"{setting} allows"
    return FieldError(
        "duration",
        "too_large",
        f"is {shown_number(duration)} minutes; {whose} {longest}",
        longest,
    )


def region_not_served(field: str, region: str, regions: Collection[str]) -> FieldError:
    """Return the fault of a Region that is not one of TOKENSVC_REGIONS."""
    served = ", ".join(sorted(regions))
    return FieldError(
        field,
        "region_not_served",
        f"is in Region {_shown_text(region)}; this service serves {served} (TOKENSVC_REGIONS)",
        served,
    )


def unknown_field(name: str, known: Collection[str], of: str, errors: list[FieldError]) -> None:
    """Add the fault of a field that `of` does not have, with the closest one that it has.

    Where so many faults are known that this one will not be told, it is only counted: a request has
    room for thousands of names, and comparing all of them would hold the event loop for long.
    """
    if len(errors) >= _MAX_REPORTED:
        errors.append(_ONE_MORE)
        return
    shown = _shown_text(name)
    close = get_close_matches(shown, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    errors.append(
        FieldError(shown, "unknown_field", f"is not a field of {of}{hint}", ", ".join(known))
    )


def _shown_text(text: str) -> str:
    return text[:MAX_SHOWN_CHARS].encode("utf-8", "replace").decode("utf-8")
