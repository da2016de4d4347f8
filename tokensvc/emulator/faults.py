"""Faults that a test asks for: delays, throttling, errors, and connections that break.

A rule applies to the next `count` calls that it matches; for one call the first rule that matches
counts. `drop_before` breaks the connection before the call takes effect, `drop_after` once it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from tokensvc.emulator.errors import (
    AccessDeniedError,
    ApiError,
    ConflictError,
    ExpiredTokenError,
    InternalServerError,
    PendingVerificationError,
    ResourceNotFoundError,
    ServiceQuotaExceededError,
    ThrottlingError,
    ValidationError,
)

__all__ = ["ERRORS", "MAX_DELAY_SECONDS", "MAX_RULES", "FaultRule", "Faults"]

MAX_DELAY_SECONDS: Final = 60.0
MAX_RULES: Final = 1000

ERRORS: Final[dict[str, type[ApiError]]] = {
    error.code: error
    for error in (
        AccessDeniedError,
        ConflictError,
        ExpiredTokenError,
        InternalServerError,
        PendingVerificationError,
        ResourceNotFoundError,
        ServiceQuotaExceededError,
        ThrottlingError,
        ValidationError,
    )
}
"""The errors that a rule can ask for, by their AWS code."""


class FaultRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule, as it is posted."""

    operation: str
    """An operation's name, or `*` for every one."""

    kind: Literal["delay", "throttle", "error", "drop_before", "drop_after"]

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """How many calls it applies to."""

    region: str | None = None
    """Only calls for this Region; every one where None."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_SECONDS)] = 0.0
    """How long a `delay` is."""

    code: str = InternalServerError.code
    """The AWS code of an `error`."""


@dataclass(slots=True)
class _Pending:
    rule: FaultRule
    left: int


class Faults:
    """The rules that still apply, oldest first."""

    def __init__(self) -> None:
        """Start without faults."""
        self._pending: list[_Pending] = []

    def add(self, rules: list[FaultRule]) -> None:
        """Add rules. Raises ValueError for an unknown code, or for more than 1,000 rules."""
        for rule in rules:
            if rule.code not in ERRORS:
                raise ValueError(f"code must be one of {', '.join(sorted(ERRORS))}")
        if len(self._pending) + len(rules) > MAX_RULES:
            raise ValueError(f"at most {MAX_RULES} rules")
        self._pending += [_Pending(rule, rule.count) for rule in rules]

    def clear(self) -> None:
        """Take all rules away."""
        self._pending.clear()

    def next_for(self, operation: str, region: str) -> FaultRule | None:
        """Return the rule for a call that has arrived, and count the call against it."""
        for pending in self._pending:
            rule = pending.rule
            if rule.operation in (operation, "*") and rule.region in (region, None):
                pending.left -= 1
                if pending.left == 0:
                    self._pending.remove(pending)
                return rule
        return None
