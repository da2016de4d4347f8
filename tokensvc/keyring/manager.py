"""Looks after key rings: looks, decides (`rotator.py`), takes steps (`steps.py`), looks again.

Every public method can be cut off at any line and called again. Another process that does the same
at the same time is noticed by the store's compare-and-swap; this one then looks again. A step that
fails is left out until the next call, and does not hold up the steps after it; a fault of one Region
stays there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from tokensvc.errors import (
    IvsThrottledError,
    KeyMismatchError,
    NoSigningKeyError,
    NotFoundError,
    RingConflictError,
    TokenServiceError,
)
from tokensvc.keyring.adoption import Adoption
from tokensvc.keyring.drain import DrainMarks
from tokensvc.keyring.drift import ReconcileReport, findings
from tokensvc.keyring.imports import ImportedKeys, PublicKeyGateway, Sleep
from tokensvc.keyring.invalidation import InvalidationReport, Invalidator
from tokensvc.keyring.observer import Observer
from tokensvc.keyring.opener import KeyOpener
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState, check_ring_id
from tokensvc.keyring.rotator import (
    RotateNow,
    Wait,
    plan,
)
from tokensvc.keyring.sealing import Sealer
from tokensvc.keyring.status import Problem, RegionStatus
from tokensvc.keyring.steps import StepTaker
from tokensvc.keyring.store import RingStore, load_rings
from tokensvc.keyring.view import RingView
from tokensvc.keyring.walk import Walk, problem_of, step_name
from tokensvc.signing import Backend, SigningKey, self_check

__all__ = ["RingManager"]

# From an empty ring to one with a standby takes eight steps; the rest is for meeting others.
_MAX_STEPS: Final = 24
# Between two comparisons of the ACTIVE key with what IVS holds; that it is there is seen at each tick.
_VERIFY_SECONDS: Final = 900.0

_log = structlog.get_logger(__name__)


class RingManager:
    """Looks after the keys of one ring id, Region by Region."""

    def __init__(
        self,
        *,
        store: RingStore,
        sealer: Sealer,
        gateway: PublicKeyGateway,
        policy: RotationPolicy,
        drain: DrainMarks | None,
        clock: Callable[[], float],
        clock_off: Callable[[str], float],
        sleep: Sleep,
        ring_id: str,
        signer_backend: Backend | None = None,
    ) -> None:
        """Wire the parts; ValueError for a `ring_id` that is not one (`check_ring_id`).

        `sleep` waits the given seconds (`asyncio.sleep`). `clock_off` says by how many seconds our
        clock is off AWS's for certain in a Region (`ClockReading.at_least_seconds`; 0 where nothing
        is known): beyond the policy's skew no key is rotated or deleted by it. `drain` is the
        ledger; None only where `policy.ledger_complete` is false, else ValueError: no key would ever
        seem to be in use.
        """
        if drain is None and policy.ledger_complete:
            raise ValueError("a complete ledger was promised and none is there")
        self._store = store
        self._clock = clock
        self._policy = policy
        self._sleep = sleep
        self._ring_id = check_ring_id(ring_id)
        self._imported = ImportedKeys(gateway, ring_id, sleep)
        self._opener = KeyOpener(sealer, ring_id, signer_backend)
        self._observer = Observer(
            imported=self._imported,
            drain=drain,
            ring_id=ring_id,
            clock=clock,
            clock_off=clock_off,
        )
        self._taker = StepTaker(
            store=store,
            imported=self._imported,
            opener=self._opener,
            sealer=sealer,
            policy=policy,
            ring_id=ring_id,
            clock=clock,
        )
        self._invalidator = Invalidator(
            store=store,
            opener=self._opener,
            taker=self._taker,
            policy=policy,
            clock=clock,
        )
        self._adoption = Adoption(
            store=store,
            imported=self._imported,
            sealer=sealer,
            ring_id=ring_id,
            backend=signer_backend,
            clock=clock,
        )
        self._barred: dict[str, str] = {}
        self._unfit: set[str] = set()
        self._reasons_logged: dict[str, str] = {}
        self._verified_at: dict[str, float] = {}
        self._status: dict[str, RegionStatus] = {}

    @property
    def policy(self) -> RotationPolicy:
        """The times it goes by."""
        return self._policy

    def status(self, region: str) -> RegionStatus | None:
        """Return what this process last found in `region`; None before its first look."""
        return self._status.get(region)

    async def prepare(self, region: str) -> KeyRecord:
        """See to it that `region` has one ACTIVE key that IVS verifies, and return it.

        Takes no step that can wait. Raises IvsError, StoreUnavailableError, SealError,
        KeyMismatchError as its steps do, NoSigningKeyError where no slot is free for a key, and
        RingConflictError where other processes keep changing the ring.
        """
        walk = Walk(self._observer, self._store, region, self._sleep)
        failed: dict[str, TokenServiceError] = {}
        for _ in range(_MAX_STEPS):
            ring, facts = await walk.look()
            self._bar(ring, facts.gone)
            if ring.active is not None and ring.active.key_id not in facts.gone:
                await self._verify(ring.active)
                return ring.active
            steps = plan(ring, self._policy, facts, self._clock())
            step = walk.choose(steps, failed)
            if isinstance(step, Wait):
                for error in failed.values():
                    raise error
                raise NoSigningKeyError(f"No key signs in {region}: {step.reason}.", region=region)
            try:
                await walk.take(self._taker, ring, step)
            except RingConflictError:
                _log.info("key_ring_changed_meanwhile", region=region)
            except TokenServiceError as error:
                failed[step_name(step)] = error
        raise self._keeps_changing(region)

    async def tick(self, region: str, wish: RotateNow | None = None) -> RegionStatus:
        """Look at `region`, take every step that may be taken now, and say what is left.

        Never raises for what IVS, the store or a key does: that is in the status, and logged where
        it is new. Cut off, it leaves nothing that the next tick does not put right.
        """
        walk = Walk(self._observer, self._store, region, self._sleep)
        status = RegionStatus(region, self._clock(), "unknown")
        try:
            status = await self._walk(walk, status, wish)
        except TokenServiceError as error:
            problem = problem_of("look", error)
            status = replace(status, next_step="look again", problems=(problem,), blocked=True)
        self._note(status)
        return status

    async def rotate(self, region: str, *, to: str | None = None) -> RegionStatus:
        """Replace the ACTIVE key now, by the key `to` where it is given, as far as that can be.

        The status says what was done, or until when or for what it has to wait: the standby must be
        there, checked and old enough, so that no join fails. Where no key is ACTIVE, one is as soon
        as it is checked. Raises NotFoundError where `to` is no key that can still come to sign, and
        StoreUnavailableError.
        """
        ring = await self._store.load(region)
        coming = (*ring.in_phase(KeyPhase.STANDBY), *ring.in_phase(KeyPhase.GENERATED))
        if to is not None and to not in {key.key_id for key in coming}:
            raise NotFoundError(f"There is no STANDBY key {to} in {region}.", key_id=to)
        active = None if ring.active is None else ring.active.key_id
        return await self.tick(region, RotateNow(active, to))

    async def reconcile(self, region: str, *, dry_run: bool = False) -> ReconcileReport:
        """Say where the stored ring and what IVS holds differ, and put it right unless `dry_run`.

        Repairing is a tick, so what is due is done too. Raises IvsError, KeyMismatchError and
        StoreUnavailableError where looking fails; what a repair runs into is in the status.
        """
        ring, facts = await Walk(self._observer, self._store, region, self._sleep).look()
        steps = plan(ring, self._policy, facts, self._clock())
        return ReconcileReport(
            region=region,
            dry_run=dry_run,
            findings=findings(ring, facts),
            planned=tuple(step_name(step) for step in steps if not isinstance(step, Wait)),
            status=None if dry_run else await self.tick(region),
        )

    async def look(self, region: str) -> RegionStatus:
        """Say how `region` stands and what is due there; takes no step.

        `next_at` is now where something is due. Raises as `reconcile` does.
        """
        ring, facts = await Walk(self._observer, self._store, region, self._sleep).look()
        now = self._clock()
        *due, rest = plan(ring, self._policy, facts, now)
        wait = rest if isinstance(rest, Wait) else Wait(now, step_name(rest))
        return RegionStatus(
            region=region,
            at=now,
            next_step=step_name(due[0]) if due else wait.reason,
            next_at=now if due else wait.until,
            blocked=wait.blocked,
            foreign_keys=facts.holdings.foreign,
            free_slots=facts.holdings.free_slots,
            overdue=self._overdue(ring),
        )

    async def adopt(self, region: str, private_key: bytes, arn: str) -> KeyRecord:
        """Take a key whose public half is in IVS already into the ring; see `Adoption.adopt`."""
        return await self._adoption.adopt(region, private_key, arn)

    async def load_view(self) -> RingView:
        """Return the stored ring with its ACTIVE keys ready to sign.

        A key that does not open, or that was found unfit, leaves its Region without a signing key,
        with the reason in the view, and so does a damaged ring; the other Regions are not affected.
        All are opened at once, so that a key manager that hangs costs the time of one call. Raises
        StoreUnavailableError.
        """
        rings = await load_rings(self._store)
        actives = [ring.active for ring in rings.whole if ring.active is not None]
        reasons = dict(rings.damaged)
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(self._open(key)) for key in actives]
            group.create_task(self._open_standbys(rings.whole))
        signing_keys: list[SigningKey] = []
        longest_ttls: dict[str, float] = {}
        for key, task in zip(actives, opening, strict=True):
            opened = task.result()
            if isinstance(opened, str):
                reasons[key.region] = opened
                continue
            signing_keys.append(opened)
            longest_ttls[key.region] = key.longest_ttl or 0.0
        ids = {key.region: key.key_id for key in actives}
        for region, reason in reasons.items():
            if self._reasons_logged.get(region) != reason:
                _log.error("key_may_not_sign", region=region, key_id=ids.get(region), reason=reason)
        self._reasons_logged = reasons
        if not rings.damaged:
            self._forget_all_but(rings.whole)
        return RingView(
            signing_keys,
            (key for ring in rings.whole for key in ring.keys),
            reasons,
            longest_ttls,
        )

    async def _open(self, key: KeyRecord) -> SigningKey | str:
        """Return the key ready to sign, or why it is not."""
        reason = self._barred.get(key.key_id)
        if reason is not None:
            return reason
        try:
            return await self._opener.open(key)
        except TokenServiceError as error:
            # Whatever keeps one Region's key from opening, the others sign on.
            return error.detail

    async def versions(self) -> dict[str, int]:
        """Return the stored version of each Region's ring; raises StoreUnavailableError."""
        return await self._store.versions()

    async def invalidate(
        self, region: str, key_id: str, *, dry_run: bool = False
    ) -> InvalidationReport:
        """Take a compromised key out: it signs no more, its private half and public key are gone.

        First one stored change makes it RETIRING and condemned, destroys its private half, and
        makes the standby ACTIVE where it was the ACTIVE one; whatever happens after that, it does
        not sign. Then it is deleted at IVS; where that fails, the report says so and every tick
        tries again. `dry_run` changes nothing.

        Raises NotFoundError for a key that is not in the ring, StoreUnavailableError,
        RingConflictError where other processes keep changing the ring.
        """
        return await self._invalidator.invalidate(region, key_id, dry_run=dry_run)

    async def _walk(self, walk: Walk, status: RegionStatus, wish: RotateNow | None) -> RegionStatus:
        failed: dict[str, Problem] = {}
        taken: list[str] = []
        conflicts = 0
        while len(taken) + len(failed) + conflicts < _MAX_STEPS:
            ring, facts = await walk.look()
            self._bar(ring, facts.gone)
            facts = replace(facts, unfit=frozenset(self._unfit))
            steps = plan(ring, self._policy, facts, self._clock(), wish)
            step = walk.choose(steps, failed)
            if isinstance(step, Wait):
                active = ring.active
                if (
                    active is not None
                    and active.key_id not in facts.gone
                    and self._verify_due(active, failed)
                ):
                    await self._verify_or_note(active, failed)
                    continue
                return replace(
                    status,
                    next_step=step.reason,
                    next_at=step.until,
                    blocked=step.blocked or bool(failed),
                    problems=tuple(failed.values()),
                    foreign_keys=facts.holdings.foreign,
                    free_slots=facts.holdings.free_slots,
                    steps=tuple(taken),
                    overdue=self._overdue(ring),
                )
            try:
                await walk.take(self._taker, ring, step)
                taken.append(step_name(step))
            except RingConflictError:
                conflicts += 1
            except TokenServiceError as error:
                failed[step_name(step)] = problem_of(step_name(step), error)
        raise self._keeps_changing(status.region)

    def _verify_due(self, key: KeyRecord, failed: dict[str, Problem]) -> bool:
        age = self._clock() - self._verified_at.get(key.key_id, float("-inf"))
        # One that may not sign for now is looked at each time: it may be all right again.
        due = key.key_id in self._barred or not 0.0 <= age < _VERIFY_SECONDS
        return due and f"Verify {key.key_id}" not in failed

    async def _verify_or_note(self, key: KeyRecord, failed: dict[str, Problem]) -> None:
        try:
            await self._verify(key)
        except TokenServiceError as error:
            failed[f"Verify {key.key_id}"] = problem_of(f"Verify {key.key_id}", error)

    def _overdue(self, ring: RingState) -> float:
        active = ring.active
        if active is None or active.activated_at is None:
            return 0.0
        late = self._clock() - active.activated_at - self._policy.period
        return late if late > self._policy.overdue_after else 0.0

    def _bar(self, ring: RingState, gone: frozenset[str]) -> None:
        # Barred before it is stored: if the store fails now, the key must still not sign.
        for key in ring.keys:
            if key.key_id in gone:
                self._barred[key.key_id] = f"IVS no longer holds {key.arn}."

    async def _verify(self, key: KeyRecord) -> None:
        signing_key = await self._opener.open(key)
        imported = await self._imported.get_new(key.region, signing_key.arn)
        try:
            self_check(signing_key, imported.public_key_pem)
        except KeyMismatchError as error:
            self._barred[key.key_id] = error.detail
            self._unfit.add(key.key_id)
            raise
        self._barred.pop(key.key_id, None)
        self._unfit.discard(key.key_id)
        self._verified_at[key.key_id] = self._clock()

    async def _open_standbys(self, rings: tuple[RingState, ...]) -> None:
        async with asyncio.TaskGroup() as group:
            for ring in rings:
                for standby in ring.in_phase(KeyPhase.STANDBY):
                    group.create_task(self._open_standby(standby))

    async def _open_standby(self, standby: KeyRecord) -> None:
        try:
            await self._opener.open(standby)
        except TokenServiceError as error:
            _log.warning("standby_key_unfit", key_id=standby.key_id, reason=error.detail)

    def _forget_all_but(self, rings: tuple[RingState, ...]) -> None:
        kept = {
            key.key_id for ring in rings for key in ring.keys if key.sealed_private_key is not None
        }
        self._opener.keep_only(kept)
        # What is not in the ring any longer needs no remembering.
        self._verified_at = {k: at for k, at in self._verified_at.items() if k in kept}
        self._barred = {k: why for k, why in self._barred.items() if k in kept}
        self._unfit &= kept

    def _note(self, status: RegionStatus) -> None:
        before = self._status.get(status.region)
        self._status[status.region] = status
        if status.same_trouble(before):
            return
        if status.healthy:
            if before is not None:
                _log.info("key_ring_healthy", region=status.region, next_step=status.next_step)
            return
        # A spent budget of calls passes by itself; nobody needs to get up for it.
        codes = {problem.code for problem in status.problems}
        passing = codes == {IvsThrottledError.code} and not status.overdue
        report = _log.warning if passing else _log.error
        report(
            "key_ring_needs_attention",
            region=status.region,
            next_step=status.next_step,
            overdue_seconds=status.overdue,
            problems=[
                {"step": problem.step, "code": problem.code, "detail": problem.detail}
                for problem in status.problems
            ],
        )

    def _keeps_changing(self, region: str) -> RingConflictError:
        return RingConflictError(
            f"The key ring of {region} keeps being changed by other processes.", region=region
        )
