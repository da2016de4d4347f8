"""Does this key sign what IVS can verify?

To a web user a wrong signature and an unknown `kid` look alike ("Token is malformed"), so it is found out
here, before a key may sign: its material must be what GetPublicKey returns, and a token minted with it
must verify under that, in an implementation (PyJWT over OpenSSL) that shares nothing with the fast path.
"""

from __future__ import annotations

import secrets

import jwt

from tokensvc.errors import KeyMismatchError
from tokensvc.signing.keys import load_public_key, spki
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.limits import ALGORITHM

__all__ = ["self_check"]


def self_check(key: SigningKey, imported_public_key_pem: str) -> None:
    """Sign and verify against the public key that IVS holds under the key's ARN.

    Raises KeyMismatchError where the material differs or the signature does not verify.
    """
    try:
        imported = load_public_key(imported_public_key_pem)
    except ValueError as error:
        raise KeyMismatchError(
            f"IVS holds something else than a P-384 public key under {key.arn}: {error}."
        ) from error
    if spki(imported) != key.public_key_der:
        raise KeyMismatchError(f"IVS holds another public key under {key.arn}.", key_id=key.key_id)
    challenge = secrets.token_urlsafe(32)
    try:
        token = key.mint({"challenge": challenge})
        claims = jwt.decode(token, imported, algorithms=[ALGORITHM])
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, RuntimeError, ValueError) as error:
        raise KeyMismatchError(
            f"A signature of key {key.key_id} does not verify.", key_id=key.key_id
        ) from error
    if claims != {"challenge": challenge} or header.get("kid") != key.arn:
        raise KeyMismatchError(f"A token of key {key.key_id} does not say what was signed.")
