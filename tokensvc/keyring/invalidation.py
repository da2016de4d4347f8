"""What invalidating a key did, or would do."""

from __future__ import annotations

from dataclasses import dataclass

from tokensvc.keyring.record import KeyPhase
from tokensvc.keyring.status import Problem

__all__ = ["InvalidationReport"]


@dataclass(frozen=True, slots=True)
class InvalidationReport:
    """One key invalidated, or looked at where `dry_run`.

    `phase` is the one it was found in. `successor` is the key that signs in its place; None where it
    did not sign, or where nothing can take its place yet. Its living tokens fail at join from now on:
    `latest_expiry` (Unix seconds) is when the last of them would have expired, None where the ledger
    has none. `deleted` says whether IVS holds it no more; where not, `problem` says why, and it is
    tried again.
    """

    region: str
    key_id: str
    arn: str | None
    phase: KeyPhase
    successor: str | None
    latest_expiry: float | None
    dry_run: bool
    deleted: bool
    problem: Problem | None = None
