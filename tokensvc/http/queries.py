"""Query parameters, parsed as bodies are: every bad one is named, none is ignored.

A parameter that was misspelt would otherwise widen a list, and one that is empty (a variable that was
not set) would select other things than were meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from litestar import Request

from tokensvc.errors import FieldError
from tokensvc.tokens.fields import (
    FieldParser,
    invalid_fields,
    parse_stage_arn,
    shown_number,
    unknown_field,
)
from tokensvc.tokens.limits import MAX_ARN_CHARS, MAX_TOKEN_ID_CHARS

__all__ = [
    "CURSOR",
    "DEFAULT_LIMIT",
    "LIMIT",
    "MAX_LIMIT",
    "PAGE",
    "STAGE_ARN_SCHEMA",
    "TOKEN_ID_SCHEMA",
    "parse_flag",
    "query_of",
    "stage_arn_text",
]

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 100
MAX_CURSOR_CHARS: Final = 256
_MAX_NAMES: Final = 20
_CURSOR: Final = re.compile(rf"[!-~]{{1,{MAX_CURSOR_CHARS}}}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)

STAGE_ARN_SCHEMA: Final[Mapping[str, object]] = {
    "type": "string",
    "pattern": "^arn:aws:ivs:[a-z0-9-]+:[0-9]+:stage/[a-zA-Z0-9-]+$",
    "maxLength": MAX_ARN_CHARS,
}
TOKEN_ID_SCHEMA: Final[Mapping[str, object]] = {
    "type": "string",
    "pattern": f"^[A-Za-z0-9_-]{{1,{MAX_TOKEN_ID_CHARS}}}$",
}

CURSOR: Final[Mapping[str, object]] = {
    "name": "cursor",
    "required": False,
    "description": "`nextCursor` of the page before, with the same filters.",
    "schema": {"type": "string", "pattern": rf"^[!-~]{{1,{MAX_CURSOR_CHARS}}}$"},
}
LIMIT: Final[Mapping[str, object]] = {
    "name": "limit",
    "required": False,
    "description": "How many to return at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
}


def query_of(
    request: Request[Any, Any, Any], parsers: Mapping[str, FieldParser], of: str
) -> dict[str, Any]:
    """Return the parameters by the parsers named for them; raises InvalidRequestError."""
    errors: list[FieldError] = []
    values: dict[str, Any] = {}
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        given.setdefault(name, []).append(value)
    for name, texts in list(given.items())[:_MAX_NAMES]:
        parser = parsers.get(name)
        if parser is None:
            unknown_field(name, tuple(parsers), of, errors)
        elif len(texts) > 1:
            errors.append(FieldError(name, "duplicate", f"is given {len(texts)} times"))
        elif texts[0] == "":
            errors.append(FieldError(name, "too_short", "is empty; leave it out", 1))
        else:
            parsed = parser(texts[0], errors)
            if parsed is not None:
                values[name] = parsed
    if errors:
        raise invalid_fields(errors)
    return values


def stage_arn_text(value: object, errors: list[FieldError]) -> str | None:
    """Return a stage's ARN as text, once it is known to be one."""
    arn = parse_stage_arn(value, errors)
    return None if arn is None else str(arn)


def parse_flag(field: str) -> FieldParser:
    """Return a parser of `true` and `false`."""

    def parse(value: object, errors: list[FieldError]) -> bool | None:
        if value not in ("true", "false"):
            errors.append(FieldError(field, "type", "must be true or false"))
            return None
        return value == "true"

    return parse


def _parse_limit(value: object, errors: list[FieldError]) -> int | None:
    text = str(value)
    number = int(text) if _NUMBER.fullmatch(text) else None
    if number is not None and 1 <= number <= MAX_LIMIT:
        return number
    shown = "not a whole number" if number is None else shown_number(number)
    detail = f"is {shown}; 1 to {MAX_LIMIT} are allowed"
    errors.append(FieldError("limit", "out_of_range", detail, MAX_LIMIT))
    return None


def _parse_cursor(value: object, errors: list[FieldError]) -> str | None:
    if isinstance(value, str) and _CURSOR.fullmatch(value):
        return value
    errors.append(FieldError("cursor", "invalid", "is not a cursor of this service"))
    return None


PAGE: Final[Mapping[str, FieldParser]] = {"cursor": _parse_cursor, "limit": _parse_limit}
"""The parameters of every list."""
