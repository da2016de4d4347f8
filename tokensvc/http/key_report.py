"""The key ring in words and numbers: what is stored, what is planned, and what a Region lacks.

Made from the stored ring, the ledger and what the rotator last found; asks nothing of AWS.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import structlog

from tokensvc.errors import NoSigningKeyError, StoreUnavailableError
from tokensvc.http.key_structs import KeyAnswer, RegionAnswer, RegionProblem
from tokensvc.keyring import KeyPhase, KeyRecord, RingState, RingView, RotationPolicy
from tokensvc.keyring.drain import delete_at
from tokensvc.keyring.policy import SLOTS
from tokensvc.keyring.status import Problem, RegionStatus
from tokensvc.signing import fingerprint, load_public_key, spki

__all__ = ["KeyLedger", "describe_key", "describe_problem", "describe_region", "not_signing"]

_MAY_HAVE_TOKENS = frozenset({KeyPhase.ACTIVE, KeyPhase.RETIRING})

_log = structlog.get_logger(__name__)


class KeyLedger(Protocol):
    """What is asked of the ledger: `tokensvc.ledger.Ledger`."""

    async def count_living(self, now: float, *, key_id: str | None = None) -> int:
        """Count the living tokens of a key; raises StoreUnavailableError."""
        ...

    async def latest_expiry(self, key_id: str) -> int | None:
        """Return the latest `exp` of a key's tokens; raises StoreUnavailableError."""
        ...


async def describe_key(
    key: KeyRecord,
    ring: RingState,
    *,
    view: RingView,
    ledger: KeyLedger,
    policy: RotationPolicy,
    now: float,
) -> KeyAnswer:
    """Describe one key of `ring`; raises StoreUnavailableError.

    Living tokens that the database does not count in time are not told: who asks about keys in an
    emergency must not wait for a ledger of millions.
    """
    living: int | None = None if key.phase is KeyPhase.DELETED else 0
    latest = None
    if key.phase in _MAY_HAVE_TOKENS:
        latest = await ledger.latest_expiry(key.key_id)
        try:
            living = await ledger.count_living(now, key_id=key.key_id)
        except StoreUnavailableError as error:
            _log.warning("living_tokens_not_counted", key_id=key.key_id, detail=error.detail)
            living = None
    next_phase, next_at = _next(key, ring, policy, latest)
    return KeyAnswer(
        key_id=key.key_id,
        region=key.region,
        phase=key.phase.value,
        arn=key.arn,
        name=key.name,
        fingerprint=_fingerprint(key.public_key_pem),
        signing=_signs(key, view),
        age_seconds=max(0.0, now - key.created_at),
        created_at=key.created_at,
        imported_at=key.imported_at,
        checked_at=key.checked_at,
        activated_at=key.activated_at,
        retired_at=key.retired_at,
        deleted_at=key.deleted_at,
        delete_reason=None if key.delete_reason is None else key.delete_reason.value,
        live_tokens=living,
        last_token_expires_at=latest if latest is not None and latest > now else None,
        next_phase=None if next_phase is None else next_phase.value,
        next_at=next_at,
    )


def describe_region(region: str, status: RegionStatus | None) -> RegionAnswer:
    """Describe what was last found in a Region; None where nobody looked."""
    if status is None:
        return RegionAnswer(region)
    free = status.free_slots
    return RegionAnswer(
        region=region,
        checked_at=status.at,
        healthy=status.healthy,
        next_step=status.next_step,
        next_at=status.next_at,
        blocked=status.blocked,
        overdue_seconds=status.overdue,
        problems=[describe_problem(problem) for problem in status.problems],
        foreign_keys=list(status.foreign_keys),
        used_slots=None if free is None else SLOTS - free,
        free_slots=free,
    )


def describe_problem(problem: Problem) -> RegionProblem:
    """Describe a step that failed."""
    return RegionProblem(problem.step, problem.code, problem.detail, problem.retry_after)


def not_signing(regions: tuple[str, ...], view: RingView) -> dict[str, str]:
    """Say of each Region that cannot sign why it cannot."""
    reasons: dict[str, str] = {}
    for region in regions:
        try:
            view.signing_key(region)
        except NoSigningKeyError as error:
            reasons[region] = error.detail
    return reasons


def _next(
    key: KeyRecord, ring: RingState, policy: RotationPolicy, latest_expiry: int | None
) -> tuple[KeyPhase | None, float | None]:
    match key.phase:
        case KeyPhase.GENERATED:
            return KeyPhase.STANDBY, None
        case KeyPhase.STANDBY:
            return KeyPhase.ACTIVE, _takes_over_at(key, ring, policy)
        case KeyPhase.ACTIVE:
            return KeyPhase.RETIRING, (key.activated_at or 0.0) + policy.period
        case KeyPhase.RETIRING:
            # Condemned: it is being deleted as fast as IVS takes it.
            waits = key.delete_reason is None
            return KeyPhase.DELETED, delete_at(key, latest_expiry, policy) if waits else None
        case KeyPhase.DELETED:
            return None, None


def _takes_over_at(key: KeyRecord, ring: RingState, policy: RotationPolicy) -> float | None:
    active = ring.active
    if active is None or key is not ring.in_phase(KeyPhase.STANDBY)[0]:
        return None
    due = (active.activated_at or 0.0) + policy.period
    return max(due, (key.imported_at or 0.0) + policy.standby_min_age)


def _signs(key: KeyRecord, view: RingView) -> bool:
    try:
        return view.signing_key(key.region).key_id == key.key_id
    except NoSigningKeyError:
        return False


@lru_cache(maxsize=64)
def _fingerprint(public_key_pem: str) -> str:
    return fingerprint(spki(load_public_key(public_key_pem)))
