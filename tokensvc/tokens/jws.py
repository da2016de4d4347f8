"""JWS compact serialisation (RFC 7515 section 7.1) of IVS tokens.

The payload is **ASCII-only JSON**: the web SDK decodes a token with `atob` and `JSON.parse` and no
UTF-8 step, so raw UTF-8 would reach the application as mojibake, while `\\uXXXX` decodes correctly
everywhere. The header depends on the key alone and is encoded once per key, by the key's owner.

Nothing here signs; a signature is 96 bytes that come from `tokensvc.signing`.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable, Mapping

import msgspec

from tokensvc.tokens.limits import ALGORITHM

__all__ = ["base64url", "compact", "header_segment", "payload_segment"]

_encode = msgspec.json.Encoder().encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_URL_ALPHABET = bytes.maketrans(b"+/", b"-_")


def base64url(data: bytes) -> bytes:
    """Encode as base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(data, newline=False).translate(_URL_ALPHABET, b"=")


def header_segment(kid: str) -> bytes:
    """Return the encoded JOSE header of every token signed with the key whose ARN is `kid`."""
    return base64url(_encode({"alg": ALGORITHM, "typ": "JWT", "kid": kid}))


def payload_segment(claims: Mapping[str, object]) -> bytes:
    r"""Return the encoded payload: ASCII JSON, everything above U+007F as `\uXXXX`.

    Raises UnicodeEncodeError for a lone surrogate, which no JSON text in UTF-8 can hold.
    """
    encoded = _encode(claims)
    if not encoded.isascii():
        encoded = _encode_ascii(claims).encode("ascii")
    return base64url(encoded)


def compact(header: bytes, claims: Mapping[str, object], sign: Callable[[bytes], bytes]) -> str:
    """Assemble header segment, claims and signature to a token; `sign` gets the signing input."""
    signing_input = b"%b.%b" % (header, payload_segment(claims))
    return f"{signing_input.decode('ascii')}.{base64url(sign(signing_input)).decode('ascii')}"
