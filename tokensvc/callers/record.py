"""What is known of a caller, and the rules for what an operator may ask of one.

A caller is a backend, not a user. It holds one secret, or two while it changes over. What is revoked
or has expired stays on record; its name is not given to another, so that old logs keep one meaning.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from tokensvc.callers.scopes import Scope
from tokensvc.errors import FieldError, InvalidRequestError

__all__ = [
    "MAX_CALLERS",
    "MAX_LIFETIME_SECONDS",
    "MAX_NAME_CHARS",
    "MAX_OVERLAP_SECONDS",
    "MAX_SECRETS",
    "Caller",
    "CallerSecret",
    "CallerState",
    "check_expiry",
    "check_name",
    "check_overlap",
    "invalid",
]

MAX_NAME_CHARS: Final = 64
MAX_CALLERS: Final = 1000
"""Callers that are not revoked; every replica holds them in memory and reads them in one go."""
MAX_SECRETS: Final = 2
MAX_LIFETIME_SECONDS: Final = 10 * 365 * 24 * 3600
"""The latest expiry, from now. A time further off is more likely milliseconds than meant."""
MAX_OVERLAP_SECONDS: Final = 30 * 24 * 3600
"""The longest that an old secret stays valid beside its successor."""

CallerState = Literal["active", "expired", "revoked"]

_SHA256_BYTES: Final = 32
_NAME: Final = re.compile(rf"[A-Za-z][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class CallerSecret:
    """The SHA-256 of one secret. Times are Unix seconds; it is valid until before `expires_at`."""

    sha256: bytes = field(repr=False)
    created_at: float
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if len(self.sha256) != _SHA256_BYTES:
            raise ValueError("a secret's SHA-256 has 32 bytes")

    def is_valid(self, now: float) -> bool:
        """Tell whether this secret may be used at `now`."""
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller; times are Unix seconds, None is "never", `secrets` are oldest first.

    Raises ValueError for more than two secrets.
    """

    caller_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    secrets: tuple[CallerSecret, ...] = ()

    def __post_init__(self) -> None:
        if len(self.secrets) > MAX_SECRETS:
            raise ValueError(f"caller {self.caller_id} has more than {MAX_SECRETS} secrets")

    def state(self, now: float) -> CallerState:
        """Return what this caller is at `now`; only an active one may call."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "active"

    def valid_secrets(self, now: float) -> tuple[CallerSecret, ...]:
        """Return the secrets that may be used at `now`, oldest first."""
        return tuple(secret for secret in self.secrets if secret.is_valid(now))


def check_name(name: str) -> str:
    """Return `name` if a caller may have it: 1 to 64 of `[A-Za-z0-9._-]`, the first a letter.

    Raises InvalidRequestError (field `name`). No caller id begins with a letter, so a text is never
    both one caller's id and another's name.
    """
    if len(name) > MAX_NAME_CHARS:
        detail = f"has {len(name)} characters; {MAX_NAME_CHARS} are allowed"
        raise invalid("name", "too_long", detail, MAX_NAME_CHARS)
    if _NAME.fullmatch(name) is None:
        rule = "1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', beginning with a letter"
        raise invalid("name", "pattern", f"must be {rule}", rule)
    return name


def check_expiry(expires_at: float | None, now: float) -> float | None:
    """Return `expires_at` if it is None, or later than `now` by at most ten years.

    Raises InvalidRequestError (field `expiresAt`).
    """
    if expires_at is None:
        return None
    return _within(expires_at, now, MAX_LIFETIME_SECONDS, "expiresAt")


def check_overlap(old_valid_until: float, now: float) -> float:
    """Return `old_valid_until` if it is at most 30 days later than `now`; it may be past.

    Raises InvalidRequestError (field `oldValidUntil`).
    """
    if old_valid_until <= now:
        return old_valid_until
    return _within(old_valid_until, now, MAX_OVERLAP_SECONDS, "oldValidUntil")


def invalid(
    field: str, code: str, detail: str, limit: int | str | None = None
) -> InvalidRequestError:
    """Return the error that says what is wrong with one field of what the operator asks for."""
    return InvalidRequestError(
        f"{field}: {detail}", errors=(FieldError(field, code, detail, limit),)
    )


def _within(moment: float, now: float, longest: int, field: str) -> float:
    if not math.isfinite(moment):
        raise invalid(field, "not_a_time", "must be a time in Unix seconds")
    if moment <= now:
        raise invalid(field, "past", "must be in the future")
    if moment > now + longest:
        latest = datetime.fromtimestamp(now + longest, UTC).isoformat(timespec="seconds")
        detail = f"may be at most {longest // 86400} days from now, {latest}"
        raise invalid(field, "too_far", detail, longest)
    return moment
