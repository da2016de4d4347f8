"""API keys: `tsk_<caller id>_<secret>`, where the caller id is public and the secret is not.

Of the secret only its SHA-256 is kept. A slow, salted hash (argon2, scrypt) defends passwords, which
can be guessed; these secrets are 256 random bits, which cannot, so a slow hash would add nothing but
the means to keep the service busy with wrong keys.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Final, Self

__all__ = ["MAX_AUTHORIZATION_CHARS", "ApiKey", "new_caller_id", "read_bearer"]

MAX_AUTHORIZATION_CHARS: Final = 256
"""Longest `Authorization` header that is looked at; a right one has about 70 characters."""

SECRET_BYTES: Final = 32
_CALLER_ID_CHARS: Final = 12
_BEGUN: Final = hashlib.sha256()

# RFC 9110, section 11.1: schemes know no case. RFC 6750, section 2.1: at least one space follows.
_BEARER: Final = re.compile(r"(?i:bearer) +tsk_([0-9a-z]{1,32})_([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A whole API key. It exists only when it is made; `reveal` is for showing it that one time."""

    caller_id: str
    _secret: str = field(repr=False)

    @classmethod
    def new(cls, caller_id: str) -> Self:
        """Return a key for `caller_id` with a new secret of 256 random bits."""
        return cls(caller_id, secrets.token_urlsafe(SECRET_BYTES))

    def reveal(self) -> str:
        """Return the text that the caller sends; whoever has it is the caller."""
        return f"tsk_{self.caller_id}_{self._secret}"

    @property
    def secret_sha256(self) -> bytes:
        """The SHA-256 of the secret's text, which is all that is stored of it."""
        return _sha256(self._secret)

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled: a key is not to be kept."""
        raise TypeError("an ApiKey is shown once and never stored")


def new_caller_id() -> str:
    """Return a random caller id: 12 of `[0-9a-z]`, the first a digit, with which no name begins."""
    alphabet = string.digits + string.ascii_lowercase
    rest = (secrets.choice(alphabet) for _ in range(_CALLER_ID_CHARS - 1))
    return secrets.choice(string.digits) + "".join(rest)


def read_bearer(authorization: str) -> tuple[str, bytes] | None:
    """Return what the header's value claims: a caller, and the SHA-256 of the secret it gives.

    None if it is not `Bearer <api key>`.
    """
    if len(authorization) > MAX_AUTHORIZATION_CHARS:
        return None
    match = _BEARER.fullmatch(authorization)
    if match is None:
        return None
    return match[1], _sha256(match[2])


def _sha256(secret: str) -> bytes:
    # A copy of a hash that is begun spares OpenSSL looking up the algorithm, which takes longer than this.
    digest = _BEGUN.copy()
    digest.update(secret.encode("ascii"))
    return digest.digest()
