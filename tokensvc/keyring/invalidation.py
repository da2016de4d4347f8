"""Taking a compromised key out, at once and for good.

The order is what matters: first the one write after which the key signs nowhere and has no private
half, then IVS. Whatever happens in between, the stored record says what is still to be done, and
every rotator does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from tokensvc.errors import NotFoundError, RingConflictError, TokenServiceError
from tokensvc.keyring import phases
from tokensvc.keyring.opener import KeyOpener
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState
from tokensvc.keyring.rotator import Delete
from tokensvc.keyring.status import Problem
from tokensvc.keyring.steps import StepTaker
from tokensvc.keyring.store import RingStore
from tokensvc.keyring.walk import problem_of
from tokensvc.signing import self_check

__all__ = ["InvalidationReport", "Invalidator"]

_MAX_CONFLICTS: Final = 8

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InvalidationReport:
    """One key invalidated, or looked at where `dry_run`.

    `phase` is the one it was found in. `successor` is the key that signs in its place; None where it
    did not sign, or where nothing can take its place yet. Its living tokens fail at join from now on;
    which those are is the ledger's to say (`Ledger.key_use`), and not asked here: a ledger that does
    not answer must not keep a stolen key alive. `deleted` says whether IVS holds it no more; where
    not, `problem` says why, and it is tried again.
    """

    region: str
    key_id: str
    arn: str | None
    phase: KeyPhase
    successor: str | None
    dry_run: bool
    deleted: bool
    problem: Problem | None = None


class Invalidator:
    """Invalidates keys of the rings of one ring id."""

    def __init__(
        self,
        *,
        store: RingStore,
        opener: KeyOpener,
        taker: StepTaker,
        policy: RotationPolicy,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._opener = opener
        self._taker = taker
        self._policy = policy
        self._clock = clock

    async def invalidate(self, region: str, key_id: str, *, dry_run: bool) -> InvalidationReport:
        """See `RingManager.invalidate`."""
        for _ in range(_MAX_CONFLICTS):
            ring = await self._store.load(region)
            key = ring.key(key_id)
            if key is None:
                raise NotFoundError(f"There is no key {key_id} in {region}.", key_id=key_id)
            successor = await self._successor(ring, key)
            report = InvalidationReport(
                region=region,
                key_id=key_id,
                arn=key.arn,
                phase=key.phase,
                successor=None if successor is None else successor.key_id,
                dry_run=dry_run,
                deleted=key.phase is KeyPhase.DELETED,
            )
            if dry_run or key.phase is KeyPhase.DELETED:
                return report
            now = self._clock()
            changed = [phases.invalidate(key, now=now)]
            if successor is not None:
                ttl = self._policy.longest_ttl
                changed.append(phases.activate(successor, longest_ttl=ttl, now=now))
            try:
                ring = await self._store.save(ring, ring.with_keys(*changed))
            except RingConflictError:
                continue
            _log.warning(
                "key_invalidated",
                region=region,
                key_id=key_id,
                arn=key.arn,
                was=key.phase.value,
                successor=report.successor,
            )
            return await self._finish_invalidation(ring, changed[0], report)
        raise self._keeps_changing(region)

    def _keeps_changing(self, region: str) -> RingConflictError:
        return RingConflictError(
            f"The key ring of {region} keeps being changed by other processes.", region=region
        )

    async def _finish_invalidation(
        self, ring: RingState, key: KeyRecord, report: InvalidationReport
    ) -> InvalidationReport:
        try:
            await self._delete(ring, key)
        except TokenServiceError as error:
            problem = problem_of("Delete", error)
            _log.error("compromised_key_not_deleted", key_id=key.key_id, reason=error.detail)
            return replace(report, problem=problem)
        return replace(report, deleted=True)

    async def _delete(self, ring: RingState, key: KeyRecord) -> None:
        for _ in range(_MAX_CONFLICTS):
            if key.phase is KeyPhase.DELETED:
                return
            try:
                await self._taker.take(ring, Delete(key))
            except RingConflictError:
                # Every rotator sees what is to be done, and one of them may have done it by now.
                ring = await self._store.load(ring.region)
                key = ring.key(key.key_id) or key
            else:
                return
        raise self._keeps_changing(ring.region)

    async def _successor(self, ring: RingState, key: KeyRecord) -> KeyRecord | None:
        if key is not ring.active:
            return None
        for standby in ring.in_phase(KeyPhase.STANDBY):
            if standby.checked_at is None:
                continue
            try:
                self_check(await self._opener.open(standby), standby.public_key_pem)
            except TokenServiceError as error:
                # A key manager that is down must not keep a stolen key alive.
                _log.error("standby_key_unfit", key_id=standby.key_id, reason=error.detail)
                continue
            return standby
        return None
