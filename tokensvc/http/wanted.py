"""From the bytes of one token request to what it asks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from tokensvc.http.bodies import decode_json
from tokensvc.tokens.claims import WantedToken
from tokensvc.tokens.plain import plain_json, plain_list, plainly_wanted, plainly_wanted_each
from tokensvc.tokens.validate import NOTHING, Defaults, parse_wanted_token

__all__ = ["read_plain_tokens", "read_wanted_token"]


def read_wanted_token(
    text: bytes | msgspec.Raw,
    *,
    regions: Collection[str],
    max_duration: int,
    defaults: Defaults = NOTHING,
) -> WantedToken:
    """Return what the JSON in `text` asks for; `max_duration` is in minutes.

    Raises MalformedJsonError, and InvalidRequestError with one entry in `errors` for every bad field.
    """
    fields = plain_json(text)
    if fields is not None and defaults.plain is not None:
        wanted = plainly_wanted(fields, defaults.plain, regions, max_duration)
        if wanted is not None:
            return wanted
    return parse_wanted_token(
        decode_json(text), regions=regions, max_duration=max_duration, defaults=defaults
    )


def read_plain_tokens(
    texts: Sequence[msgspec.Raw],
    *,
    regions: Collection[str],
    max_duration: int,
    defaults: Defaults,
) -> list[WantedToken] | None:
    """Return what `read_wanted_token` does of each text; None where one has to be looked at by itself.

    Each text is one JSON value.
    """
    if defaults.plain is None:
        return None
    fields = plain_list(texts)
    if fields is None:
        return None
    return plainly_wanted_each(fields, defaults.plain, regions, max_duration)
