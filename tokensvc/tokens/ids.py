"""Participant ids: the `jti` of a participant token.

IVS takes 1 to 64 characters of `[A-Za-z0-9_-]`, unique for every token. Ours are 20 characters of
base32hex-like lower case and digits: 100 bits from the operating system, so that two never meet, and
no `-` or `_`, so that an id never looks like an option on a command line.
"""

from __future__ import annotations

import base64
import re
import secrets

from tokensvc.tokens.limits import MAX_TOKEN_ID_CHARS

__all__ = ["is_token_id", "new_participant_id"]

_TOKEN_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN_ID_CHARS}}}", re.ASCII)
_ID_CHARS = 20


def new_participant_id() -> str:
    """Return a new participant id: 20 characters `[a-z2-7]`, 100 random bits."""
    return base64.b32encode(secrets.token_bytes(13))[:_ID_CHARS].decode("ascii").lower()


def is_token_id(text: str) -> bool:
    """Tell whether IVS takes `text` as a `jti`: 1 to 64 characters of `[A-Za-z0-9_-]`."""
    return _TOKEN_ID.fullmatch(text) is not None
