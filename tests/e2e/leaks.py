"""Looks for secrets in bytes: what must be in no log, no file and no answer of the service.

A private key is looked for by its structure, so that a key which the test has never seen is found
too: as DER, as hex of it, as base64 at any alignment (which is what PEM is), as a JWK. Known secrets
are looked for as they are, and in hex and base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Final

# PKCS #8 (RFC 5958): version 0, then "EC public key" as the algorithm; a public key has no version.
_PKCS8: Final = bytes.fromhex("020100301006072a8648ce3d0201")
# RFC 5915: version 1, then a private key of P-384's 48 bytes.
_SEC1: Final = bytes.fromhex("0201010430")
_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")
_JWK: Final = re.compile(rb"""["']d["']\s*:\s*["'][A-Za-z0-9_-]{64}["']""")
_JWT: Final = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-](?:[A-Za-z0-9+/_-]|\\?\r?\n|\\n){63,}")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{96,}")


def leaks_in(content: bytes, known: Iterable[bytes] = ()) -> list[str]:
    """Return what kinds of secret are in `content`, without showing them."""
    found = []
    if _PEM.search(content):
        found.append("a private key in PEM")
    if _JWK.search(content):
        found.append("a private key as a JWK")
    if _JWT.search(content):
        found.append("a token")
    if any(_PKCS8 in data or _SEC1 in data for data in _decodings(content)):
        found.append("a private key in DER, hex or base64")
    found += [
        f"known secret number {number}"
        for number, secret in enumerate(known)
        if any(form in content for form in _forms(secret))
    ]
    return found


def _decodings(content: bytes) -> Iterator[bytes]:
    yield content
    for run in _HEX.findall(content):
        for start in (0, 1):
            whole = run[start:]
            yield binascii.unhexlify(whole[: len(whole) // 2 * 2])
    for run in _BASE64.findall(content):
        text = re.sub(rb"\\?\r?\n|\\n", b"", run).replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            whole = text[start:]
            yield base64.b64decode(whole[: len(whole) // 4 * 4])


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    for padding in range(3):
        # The same bytes at each alignment; the characters at the ends depend on the neighbours.
        encoded = base64.b64encode(b"\0" * padding + secret)
        middle = encoded[4 if padding else 0 : len(encoded) // 4 * 4 - 4]
        yield middle
        yield middle.replace(b"+", b"-").replace(b"/", b"_")
