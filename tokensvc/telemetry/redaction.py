"""The last step before a log line is written: nothing that looks like a secret gets past it.

It works on looks, so it also catches what no author thought of: a token inside an exception's text, a
key inside a nested dictionary, bytes, or the repr of an object. Found and replaced are JWTs (whole, or
header and payload alone), our API keys, PEM private keys, and bearer credentials; values under names
that only secrets have are replaced whatever they look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

__all__ = ["REDACTED", "may_hold_secret", "redact", "redact_event"]

REDACTED: Final = "[redacted]"

_SECRET = re.compile(
    r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"
    r"|tsk_[A-Za-z0-9_-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{12,}",
    re.DOTALL,
)
_SECRET_NAMES: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "token",
        "api_key",
        "private_key",
        "master_key",
        "secret",
        "password",
    }
)
_MAX_DEPTH: Final = 8
"""Nesting that is followed; what lies deeper is dropped, since it was not looked at."""


def redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Redact a whole event; a structlog processor, to stand right before the renderer."""
    return {_redact_text(name): _redact_item(name, value, 0) for name, value in event.items()}


def redact(value: object) -> object:
    """Return `value` fit to be rendered: plain data only, and no secret in it."""
    return _redact(value, 0)


def may_hold_secret(text: str) -> bool:
    """Tell whether `text` is to be searched; False for most, and then nothing in it is redacted."""
    # Searches for a constant are cheaper than one for the pattern, and nearly every text is clean.
    return "eyJ" in text or "tsk_" in text or "PRIVATE KEY" in text or "earer " in text


def _redact_item(name: str, value: object, depth: int) -> object:
    return REDACTED if name.lower() in _SECRET_NAMES else _redact(value, depth)


def _redact(value: object, depth: int) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return _redact_text(value)
    if depth >= _MAX_DEPTH:
        return "[nested too deep]"
    if isinstance(value, Mapping):
        return {
            _redact_text(str(name)): _redact_item(str(name), item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact(item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray):
        return _redact_text(bytes(value).decode("latin-1"))
    return _redact_text(repr(value))


def _redact_text(text: str) -> str:
    return _SECRET.sub(REDACTED, text) if may_hold_secret(text) else text
