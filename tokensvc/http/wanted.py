"""From the bytes of one token request to what it asks for."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from tokensvc.http.bodies import decode_json
from tokensvc.tokens.claims import WantedToken
from tokensvc.tokens.plain import plain_json, plainly_wanted
from tokensvc.tokens.validate import NOTHING, Defaults, parse_wanted_token

__all__ = ["read_wanted_token"]


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
