"""JWS compact serialisation (RFC 7515 section 7.1) of IVS tokens.

The payload is **ASCII-only JSON**: the web SDK decodes a token with `atob` and `JSON.parse` and no
UTF-8 step, so raw UTF-8 would reach the application as mojibake, while `\\uXXXX` decodes correctly
everywhere. The header depends on the key alone and is encoded once per key, by the key's owner.

Nothing here signs; a signature is 96 bytes that come from `tokensvc.signing`.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Mapping

import msgspec

from tokensvc.tokens.limits import ALGORITHM

__all__ = ["ascii_json", "base64url", "compact", "header_segment", "payload_segment"]

_encode = msgspec.json.Encoder().encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def base64url(data: bytes) -> bytes:
    """Encode as base64url without padding (RFC 7515 section 2)."""
    # Three passes of C over few bytes; one `translate` takes three times as long.
    encoded = b2a_base64(data, newline=False)
    return encoded.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=")


def header_segment(kid: str) -> bytes:
    """Return the encoded JOSE header of every token signed with the key whose ARN is `kid`."""
    return base64url(_encode({"alg": ALGORITHM, "typ": "JWT", "kid": kid}))


def ascii_json(value: object) -> bytes:
    r"""Return `value` as ASCII JSON, everything above U+007F as `\uXXXX`.

    For what JSON has of its own, and for Structs of nothing else. Raises UnicodeEncodeError for a lone
    surrogate, which no JSON text in UTF-8 can hold.
    """
    encoded = _encode(value)
    if encoded.isascii():
        return encoded
    return _encode_ascii(msgspec.to_builtins(value)).encode("ascii")


def payload_segment(claims: Mapping[str, object]) -> bytes:
    """Return the encoded payload; raises UnicodeEncodeError as `ascii_json` does."""
    return base64url(ascii_json(claims))


def compact(beginning: bytes, payload: bytes, signature: bytes) -> str:
    """Assemble a token; `beginning` is the header's segment with the dot behind it."""
    return (beginning + payload + b"." + base64url(signature)).decode("ascii")
