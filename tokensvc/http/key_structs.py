"""Answers about the key ring as `/schema` shows them, and as `tokensvc keys --json` prints them.

All times are Unix seconds, all lengths of time seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from tokensvc.revocation.disconnects import MAX_REASON_CHARS

__all__ = [
    "InvalidateRequest",
    "InvalidationAnswer",
    "KeyAnswer",
    "KeyUserAnswer",
    "KeysAnswer",
    "QueuedDisconnect",
    "RegionAnswer",
    "RegionProblem",
    "RotateRequest",
    "RotationAnswer",
    "RotationsAnswer",
]

Phase = Literal["GENERATED", "STANDBY", "ACTIVE", "RETIRING", "DELETED"]


class KeyAnswer(Struct, rename="camel"):
    """One key of the ring; `fingerprint` is the SHA-256 of the public key.

    `liveTokens` are those in the ledger that have not expired, `lastTokenExpiresAt` is when the last
    of them does; null for a key that is DELETED, whose tokens cannot join, and `liveTokens` also where
    the store did not count them in time. `nextPhase` is null where none is planned, `nextAt` where it
    depends on something else than time.
    """

    key_id: str
    region: str
    phase: Phase
    arn: str | None
    name: str
    fingerprint: str
    signing: bool
    age_seconds: float
    created_at: float
    imported_at: float | None
    checked_at: float | None
    activated_at: float | None
    retired_at: float | None
    deleted_at: float | None
    delete_reason: Literal["DRAINED", "COMPROMISED", "GONE"] | None
    live_tokens: int | None
    last_token_expires_at: int | None
    next_phase: Phase | None
    next_at: float | None


class RegionProblem(Struct, rename="camel"):
    """A step that failed; `code` as in problem answers."""

    step: str
    code: str
    detail: str
    retry_after: float | None


class RegionAnswer(Struct, rename="camel"):
    """How a Region's ring stood when it was last looked at, at `checkedAt`, by whichever process.

    Everything but `region` is null where nobody has looked yet. `blocked` means that something should
    happen and cannot; `overdueSeconds` is how late the rotation is, 0 within what the operator
    tolerates (TOKENSVC_ROTATION_OVERDUE). `foreignKeys` are the ARNs of other owners' keys, which take
    slots and are never touched.
    """

    region: str
    checked_at: float | None = None
    healthy: bool | None = None
    next_step: str | None = None
    next_at: float | None = None
    blocked: bool | None = None
    overdue_seconds: float | None = None
    problems: list[RegionProblem] | None = None
    foreign_keys: list[str] | None = None
    used_slots: int | None = None
    free_slots: int | None = None


class KeysAnswer(Struct, rename="camel"):
    """The key ring; `notSigning` says of each Region that cannot sign here why it cannot."""

    keys: list[KeyAnswer]
    regions: list[RegionAnswer]
    not_signing: dict[str, str]


class RotateRequest(Struct, forbid_unknown_fields=True):
    """Which Region's key to replace; every Region's where it is left out."""

    region: str | UnsetType | None = UNSET


class RotationAnswer(Struct, rename="camel"):
    """What became of one Region.

    Where not `rotated`, `status` says for what or until when (`nextAt`) it has to wait; nothing is
    remembered of the wish, so ask again then.
    """

    region: str
    rotated: bool
    previous_key_id: str | None
    active_key_id: str | None
    status: RegionAnswer


class RotationsAnswer(Struct):
    """One answer for each Region asked for."""

    regions: list[RotationAnswer]


class InvalidateRequest(Struct, forbid_unknown_fields=True):
    """Whether participants are to be disconnected too, and the reason that IVS tells them."""

    disconnect: bool | UnsetType | None = UNSET
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)] | UnsetType | None = UNSET


class KeyUserAnswer(Struct, rename="camel"):
    """Living tokens of the key that one caller asked for on one stage (null: connection tokens)."""

    stage_arn: str | None
    caller_id: str | None
    living: int
    latest_expiry: int


class QueuedDisconnect(Struct, rename="camel"):
    """The stored request that disconnects everybody; `expectedCompletion` is an estimate."""

    disconnect_id: str
    expected_completion: float


class InvalidationAnswer(Struct, rename="camel"):
    """What invalidating a key has broken, or, with `dryRun`, would break.

    `phase` is the one the key was in. `successor` signs in its place; null where the key did not
    sign, or where nothing can take its place at once: then `activeKeyId` says who signs by now, and
    while that is null tokens come from CreateParticipantToken. `deleted` says that IVS holds the key
    no more; where not, `problem` says why, and it is tried again. `livingTokens` can no longer join;
    `tokens` says whose they are, the 1,000 largest groups first. Where the store did not count them in
    time, `livingTokens` is null and `tokens` empty; a dry run asks again.
    """

    key_id: str
    region: str
    arn: str | None
    phase: Phase
    dry_run: bool
    successor: str | None
    active_key_id: str | None
    deleted: bool
    problem: RegionProblem | None
    living_tokens: int | None
    latest_expiry: int | None
    tokens: list[KeyUserAnswer]
    disconnect: QueuedDisconnect | None
