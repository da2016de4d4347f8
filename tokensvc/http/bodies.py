"""Request bodies: read within a bound, checked for what they claim to be, decoded to plain values.

Nothing is read past the bound, and a `Content-Length` above it is refused before the first byte. A
batch is cut into its items without decoding them, and stops at the first item too many, so that no
body, however odd, keeps the event loop busy for long.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Request

from tokensvc.errors import (
    BodyTooLargeError,
    FieldError,
    InvalidRequestError,
    MalformedJsonError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)
from tokensvc.http.facts import facts_of

__all__ = [
    "BatchBody",
    "batch_decoder",
    "decode_json",
    "read_json_body",
    "read_optional_json",
]

BODY_SECONDS: Final = 15.0
"""From a handler's first look at the body to its end."""

_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`", re.DOTALL)
_MAX_SHOWN: Final = 64

_decode = msgspec.json.Decoder().decode


async def read_json_body(
    request: Request[Any, Any, Any], limit: int, *, seconds: float = BODY_SECONDS
) -> bytes:
    """Return the body of a request that declares JSON; at most `limit` bytes, within `seconds`.

    Raises UnsupportedMediaTypeError, BodyTooLargeError, RequestTimeoutError, and InvalidRequestError
    where the client went away in the middle.
    """
    facts = facts_of(request.scope)
    content_type = facts.headers.get(b"content-type", b"")
    if content_type != b"application/json":
        _check_content_type(content_type)
    body = facts.body
    if body is not None and len(body) <= limit:
        return body
    return await _read(request, limit, seconds)


async def read_optional_json(request: Request[Any, Any, Any], limit: int) -> object:
    """Return the JSON value of a body that may be left out, which counts as `{}`.

    Raises as `read_json_body` and `decode_json` do.
    """
    content_type = facts_of(request.scope).headers.get(b"content-type", b"")
    if content_type:
        _check_content_type(content_type)
    body = await _read(request, limit, BODY_SECONDS)
    if not body:
        return {}
    _check_content_type(content_type)
    return decode_json(body)


async def _read(request: Request[Any, Any, Any], limit: int, seconds: float) -> bytes:
    facts = facts_of(request.scope)
    if facts.body is not None:
        if len(facts.body) > limit:
            raise _too_large(limit)
        return facts.body
    declared = facts.headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise InvalidRequestError("The connection ended before the body did.")
                size += len(message["body"])
                if size > limit:
                    raise _too_large(limit)
                chunks.append(message["body"])
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestTimeoutError(f"The body did not come within {seconds:g} seconds.") from None


def decode_json(body: bytes | msgspec.Raw) -> object:
    """Return the JSON value in `body` as plain objects.

    Raises MalformedJsonError that says near which byte it stops being JSON.
    """
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise _malformed(fault, len(bytes(body))) from None


class BatchBody(msgspec.Struct):
    """A batch, cut but not yet decoded."""

    defaults: msgspec.Raw
    tokens: tuple[msgspec.Raw, ...]


def batch_decoder(max_items: int) -> Callable[[bytes], BatchBody]:
    """Return a function that cuts the body of a batch of at most `max_items` items.

    It raises MalformedJsonError, and InvalidRequestError for an envelope that is not
    `{"defaults": {...}, "tokens": [...]}`.
    """
    absent = msgspec.Raw(b"")
    # A list is decoded whole before its length is looked at; a Struct written as an array stops at
    # the first element that it has no field for.
    items_type = msgspec.defstruct(
        "Items",
        [(f"item{index}", msgspec.Raw, absent) for index in range(max_items)],
        array_like=True,
        forbid_unknown_fields=True,
    )
    envelope_type = msgspec.defstruct(
        "Envelope",
        [("tokens", items_type), ("defaults", msgspec.Raw, msgspec.Raw(b"null"))],
        forbid_unknown_fields=True,
    )
    decode: Any = msgspec.json.Decoder(envelope_type).decode

    def cut(body: bytes) -> BatchBody:
        try:
            envelope = decode(body)
        except msgspec.ValidationError as fault:
            raise _bad_envelope(str(fault), max_items) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise _malformed(fault, len(body)) from None
        items = msgspec.structs.astuple(envelope.tokens)
        count = next((n for n, item in enumerate(items) if item is absent), max_items)
        return BatchBody(envelope.defaults, items[:count])

    return cut


def _check_content_type(value: bytes) -> None:
    media_type, *parameters = (part.strip() for part in value.decode("latin-1").lower().split(";"))
    if media_type != "application/json" or any(
        parameter not in ("charset=utf-8", 'charset="utf-8"') for parameter in parameters
    ):
        raise UnsupportedMediaTypeError(
            "The body must be declared as `Content-Type: application/json`, in UTF-8."
        )


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The body is larger than {limit} bytes.",
        errors=(FieldError("", "too_large", f"may have {limit} bytes", limit),),
    )


def _malformed(fault: Exception, length: int) -> MalformedJsonError:
    if isinstance(fault, RecursionError):
        return MalformedJsonError("The body is nested too deeply.")
    if isinstance(fault, UnicodeDecodeError):
        return MalformedJsonError("The body is not UTF-8.")
    found = _BYTE.search(str(fault))
    offset = found[1] if found else str(length)
    reason = "ends too early" if "truncated" in str(fault) else "is not JSON"
    return MalformedJsonError(f"The body {reason} (near byte {offset}).")


def _bad_envelope(fault: str, max_items: int) -> InvalidRequestError:
    unknown = _UNKNOWN.search(fault)
    if unknown:
        name = unknown[1][:_MAX_SHOWN]
        close = "defaults" if name.lower().startswith("d") else "tokens"
        error = FieldError(
            name, "unknown_field", f"is not a field of a batch; did you mean {close}?"
        )
    elif "at most length" in fault:
        error = FieldError("tokens", "too_many", f"has more than {max_items} items", max_items)
    elif "missing required" in fault:
        error = FieldError("tokens", "required", "is required: an array of token requests")
    elif "$.tokens" in fault:
        error = FieldError("tokens", "type", "must be an array of token requests")
    else:
        error = FieldError("", "type", "must be a JSON object")
    named = f"{error.field}: {error.detail}" if error.field else f"The body {error.detail}"
    return InvalidRequestError(named, errors=(error,))
