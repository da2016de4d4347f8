"""Requests that are plainly right, read in one go instead of field by field.

What is read here is exactly what `validate.py` would make of it, with one exception: where anything is
wrong or only unusual (a whole number written as `5.0`), the answer is None, and `validate.py` decides and
says why. A test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from tokensvc.tokens.arn import InvalidArnError, StageArn, cached_stage_arn
from tokensvc.tokens.claims import Issuer, WantedToken
from tokensvc.tokens.fields import is_role
from tokensvc.tokens.limits import (
    CAPABILITIES,
    MAX_ATTRIBUTES_BYTES,
    MAX_USER_ID_CHARS,
    MIN_DURATION_MINUTES,
)

__all__ = [
    "NO_DEFAULTS",
    "PlainFields",
    "plain_fields",
    "plain_json",
    "plain_list",
    "plainly_wanted",
    "plainly_wanted_each",
]


class PlainFields(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", gc=False
):
    """The fields of a request, each of the right JSON type; None is what was left out."""

    stage_arn: str | None = None
    user_id: str | None = None
    role: str | None = None
    duration: int | None = None
    capabilities: list[Literal["PUBLISH", "SUBSCRIBE"]] | None = None
    attributes: dict[str, str] | None = None
    issuer: Issuer | None = None


NO_DEFAULTS: Final = PlainFields()

_decode = msgspec.json.Decoder(PlainFields).decode
_decode_list = msgspec.json.Decoder(list[PlainFields]).decode


def plain_json(text: bytes | msgspec.Raw) -> PlainFields | None:
    """Return the fields of a request that is JSON; None where they have to be looked at one by one."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def plain_list(texts: Sequence[bytes | msgspec.Raw]) -> list[PlainFields] | None:
    """Return the fields of requests, each of which is one JSON value; None where one is unusual."""
    try:
        return _decode_list(b"[" + b",".join(texts) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def plain_fields(body: object) -> PlainFields | None:
    """Return the same of a request that is decoded already."""
    try:
        return msgspec.convert(body, PlainFields)
    # A lone surrogate in the name of a field, which msgspec's own decoder lets nobody have.
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return None


def plainly_wanted(
    fields: PlainFields, defaults: PlainFields, regions: Collection[str], max_duration: int
) -> WantedToken | None:
    """Return what is asked for, `defaults` standing in for what was left out; None as above.

    `max_duration` is in minutes.
    """
    stage = _stage(
        fields.stage_arn if fields.stage_arn is not None else defaults.stage_arn, regions
    )
    role = fields.role if fields.role is not None else defaults.role
    user_id = fields.user_id if fields.user_id is not None else defaults.user_id
    duration = fields.duration if fields.duration is not None else defaults.duration
    asked = fields.capabilities if fields.capabilities is not None else defaults.capabilities
    attributes = fields.attributes if fields.attributes is not None else defaults.attributes
    if (
        stage is None
        or (duration is not None and not MIN_DURATION_MINUTES <= duration <= max_duration)
        or (role is not None and not is_role(role))
        or (user_id is not None and not _is_user_id(user_id))
        or (attributes is not None and not _are_attributes(attributes))
    ):
        return None
    capabilities = None
    if asked is not None:
        capabilities = tuple(name for name in CAPABILITIES if name in asked)
        if len(capabilities) != len(asked):
            return None
    issuer = fields.issuer if fields.issuer is not None else defaults.issuer
    return WantedToken(stage, user_id, role, duration, capabilities, attributes, issuer)


def plainly_wanted_each(
    items: Iterable[PlainFields],
    defaults: PlainFields,
    regions: Collection[str],
    max_duration: int,
) -> list[WantedToken] | None:
    """Return what `plainly_wanted` does of each item; None where it is None of one.

    Items next to each other nearly always ask for the same, users and attributes apart; what is the same
    is looked at once.
    """
    if not _are_of_a_user(defaults.user_id, defaults.attributes):
        return None
    wanted: list[WantedToken] = []
    like: WantedToken | None = None
    asked_before: tuple[object, ...] = ()
    for fields in items:
        asked = (fields.stage_arn, fields.role, fields.duration, fields.capabilities, fields.issuer)
        if like is None or asked != asked_before:
            like = plainly_wanted(fields, defaults, regions, max_duration)
            if like is None:
                return None
            asked_before = asked
            wanted.append(like)
            continue
        user_id, attributes = fields.user_id, fields.attributes
        if not _are_of_a_user(user_id, attributes):
            return None
        wanted.append(
            WantedToken(
                like.stage,
                user_id if user_id is not None else defaults.user_id,
                like.role,
                like.duration,
                like.capabilities,
                attributes if attributes is not None else defaults.attributes,
                like.issuer,
            )
        )
    return wanted


def _are_of_a_user(user_id: str | None, attributes: Mapping[str, str] | None) -> bool:
    return (user_id is None or _is_user_id(user_id)) and (
        attributes is None or _are_attributes(attributes)
    )


def _stage(text: str | None, regions: Collection[str]) -> StageArn | None:
    if text is None:
        return None
    try:
        stage = cached_stage_arn(text)
    except InvalidArnError:
        return None
    return stage if stage.region in regions else None


def _is_user_id(text: str) -> bool:
    if len(text) > MAX_USER_ID_CHARS or "\0" in text:
        return False
    return text.isascii() or _utf8_length(text) >= 0


def _are_attributes(attributes: Mapping[str, str]) -> bool:
    size = 0
    for name, text in attributes.items():
        both = name + text
        length = len(both) if both.isascii() else _utf8_length(both)
        if length < 0:
            return False
        size += length
    return size <= MAX_ATTRIBUTES_BYTES


def _utf8_length(text: str) -> int:
    """Return the bytes of `text` in UTF-8; -1 where a lone surrogate is in it."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return -1
