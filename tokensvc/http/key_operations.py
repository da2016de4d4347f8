"""What an operator does with the key ring, over HTTP and on the command line: the same code for both.

Each operation leaves this process signing by the new ring when it returns; the other replicas follow
within `TOKENSVC_RING_REFRESH`, and so does this one where a rotation was stored and could not be read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from tokensvc.errors import (
    FieldError,
    InvalidRequestError,
    NotFoundError,
    RingDamagedError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.http.key_report import describe_key, describe_problem, describe_region, not_signing
from tokensvc.http.key_reports import newer
from tokensvc.http.key_structs import (
    InvalidationAnswer,
    KeyAnswer,
    KeysAnswer,
    KeyUserAnswer,
    QueuedDisconnect,
    RotationAnswer,
    RotationsAnswer,
)
from tokensvc.keyring import RingManager, RingState, RingStore
from tokensvc.keyring.follower import RingFollower
from tokensvc.keyring.reports import RegionReports
from tokensvc.keyring.status import Problem, RegionStatus
from tokensvc.keyring.store import load_rings
from tokensvc.ledger import KeyUse, Ledger
from tokensvc.revocation import DisconnectAsk, Revocations

__all__ = ["KeyOperations"]

# After an invalidation, to find the key that signs from now on; the rotation loop goes on from there.
_RECOVERY_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class KeyOperations:
    """Operations on the rings of `regions`; `clock` gives Unix seconds."""

    def __init__(
        self,
        *,
        regions: tuple[str, ...],
        manager: RingManager,
        rings: RingStore,
        ring: RingFollower,
        reports: RegionReports,
        ledger: Ledger,
        revocations: Revocations,
        clock: Callable[[], float],
    ) -> None:
        self._regions = regions
        self._manager = manager
        self._rings = rings
        self._ring = ring
        self._reports = reports
        self._ledger = ledger
        self._revocations = revocations
        self._clock = clock

    async def keys(self, *, look: bool = False) -> KeysAnswer:
        """Describe the whole ring; raises StoreUnavailableError.

        With `look`, IVS is asked how the Regions stand, instead of telling what was last found, by
        this process or by the one that looks after keys.
        """
        rings = (await load_rings(self._rings)).whole
        if look:
            stands: list[RegionStatus | None] = [
                await self._look(region) for region in self._regions
            ]
        else:
            read = await self._reports.load()
            stands = [
                newer(self._manager.status(region), read.get(region)) for region in self._regions
            ]
        return KeysAnswer(
            keys=[await self._describe(ring, key.key_id) for ring in rings for key in ring.keys],
            regions=[
                describe_region(region, status)
                for region, status in zip(self._regions, stands, strict=True)
            ],
            not_signing=not_signing(self._regions, self._ring.view()),
        )

    async def key(self, key_id: str) -> KeyAnswer:
        """Describe one key; raises NotFoundError and StoreUnavailableError."""
        return await self._describe(await self._ring_of(key_id), key_id)

    def wanted(self, region: str | None) -> tuple[str, ...]:
        """Return `region`, or every Region; raises InvalidRequestError for one that is not served."""
        if region is None:
            return self._regions
        if region not in self._regions:
            known = ", ".join(self._regions)
            detail = f"is not a Region of this service: {known}"
            raise InvalidRequestError(
                f"region: {detail}", errors=(FieldError("region", "not_served", detail, known),)
            )
        return (region,)

    async def rotate(self, region: str | None = None) -> RotationsAnswer:
        """Replace the ACTIVE key of `region`, or of every Region, as far as that can be now.

        What goes wrong in a Region is in its answer, and holds up no other. Raises
        InvalidRequestError for a Region that is not served, and StoreUnavailableError.
        """
        regions = map(self._rotate_or_tell, self.wanted(region))
        return RotationsAnswer(list(await asyncio.gather(*regions)))

    async def _rotate_or_tell(self, region: str) -> RotationAnswer:
        try:
            return await self.rotate_region(region)
        except RingDamagedError as error:
            # Of this Region alone: the others have been rotated, and say so.
            status = describe_region(region, self._failed(region, "Rotate", error))
            return RotationAnswer(region, False, None, None, status)

    async def rotate_region(
        self, region: str, *, unless_replaced: str | None = None, to: str | None = None
    ) -> RotationAnswer:
        """Replace the ACTIVE key of one Region, as far as that can be now, by `to` where given.

        With `unless_replaced`, a key id, only while that key is the ACTIVE one; and not where `to` is
        it already. Raises StoreUnavailableError; what else goes wrong is in the answer.
        """
        before = (await self._rings.load(region)).active
        old = None if before is None else before.key_id
        if unless_replaced not in (None, old) or (to is not None and old == to):
            return await self._answer(region, unless_replaced or old, await self._look(region))
        try:
            status = await self._manager.rotate(region, to=to)
        except TokenServiceError as error:
            status = self._failed(region, "Rotate", error)
        return await self._answer(region, old, status)

    async def rotate_if_due(self, region: str) -> RotationAnswer:
        """Take every step that is due in a Region; raises StoreUnavailableError."""
        before = (await self._rings.load(region)).active
        status = await self._manager.tick(region)
        return await self._answer(region, None if before is None else before.key_id, status)

    async def invalidate(
        self,
        key_id: str,
        *,
        dry_run: bool = False,
        disconnect: bool = False,
        reason: str = "",
        caller_id: str | None = None,
    ) -> InvalidationAnswer:
        """Take a compromised key out for good, and say what that breaks.

        First it stops signing, here at once; then it is deleted at IVS; with `disconnect` everybody
        whose token it signed is queued to be disconnected; last, for 10 seconds at most, the Region
        is given another key where it has none. Doing it again after an error is safe. `dry_run`
        changes nothing.

        Raises NotFoundError, InvalidRequestError (`reason`), StoreUnavailableError, and
        RingConflictError where other processes keep changing the ring.
        """
        region = (await self._ring_of(key_id)).region
        ask = DisconnectAsk.of_key(region, key_id, reason=reason)
        report = await self._manager.invalidate(region, key_id, dry_run=dry_run)
        queued = None
        if not dry_run:
            await self._ring.refresh(reload=True)
            if disconnect:
                accepted = await self._revocations.disconnect(ask, caller_id=caller_id)
                queued = QueuedDisconnect(accepted.disconnect_id, accepted.expected_completion)
            await self._recover(region)
        use = await self._use(key_id, needed=dry_run)
        active = (await self._rings.load(region)).active
        return InvalidationAnswer(
            key_id=key_id,
            region=region,
            arn=report.arn,
            phase=report.phase.value,
            dry_run=dry_run,
            successor=report.successor,
            active_key_id=None if active is None else active.key_id,
            deleted=report.deleted,
            problem=None if report.problem is None else describe_problem(report.problem),
            living_tokens=None if use is None else use.living,
            latest_expiry=None if use is None else use.latest_expiry,
            tokens=[
                KeyUserAnswer(user.stage_arn, user.caller_id, user.living, user.latest_expiry)
                for user in (() if use is None else use.users)
            ],
            disconnect=queued,
        )

    async def _use(self, key_id: str, *, needed: bool) -> KeyUse | None:
        """Return whose tokens the key has signed; None where that is not `needed` and took too long."""
        try:
            return await self._ledger.key_use(key_id, self._clock())
        except StoreUnavailableError as error:
            if needed:
                raise
            # What was asked for is done, and millions of tokens take seconds to count.
            _log.warning("key_use_not_counted", key_id=key_id, detail=error.detail)
            return None

    async def _answer(self, region: str, old: str | None, status: RegionStatus) -> RotationAnswer:
        try:
            await self._ring.refresh(reload=True)
        except StoreUnavailableError as error:
            # What is done is told; this process follows later, as the other replicas do.
            _log.warning("key_ring_not_followed_yet", region=region, detail=error.detail)
        active = (await self._rings.load(region)).active
        new = None if active is None else active.key_id
        return RotationAnswer(
            region=region,
            rotated=new is not None and new != old,
            previous_key_id=old,
            active_key_id=new,
            status=describe_region(region, status),
        )

    async def _look(self, region: str) -> RegionStatus:
        try:
            return await self._manager.look(region)
        except TokenServiceError as error:
            return self._failed(region, "Look", error)

    def _failed(self, region: str, step: str, error: TokenServiceError) -> RegionStatus:
        problem = Problem(step, error.code, error.detail, error.retry_after)
        return RegionStatus(region, self._clock(), "try again", blocked=True, problems=(problem,))

    async def _recover(self, region: str) -> None:
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                await self._manager.tick(region)
        except TimeoutError:
            _log.warning("recovery_goes_on", region=region, seconds=_RECOVERY_SECONDS)
        await self._ring.refresh(reload=True)

    async def _ring_of(self, key_id: str) -> RingState:
        rings = await load_rings(self._rings)
        for ring in rings.whole:
            if ring.key(key_id) is not None:
                return ring
        if rings.damaged:
            # It may be one of theirs.
            raise RingDamagedError("; ".join(map(": ".join, rings.damaged.items())))
        raise NotFoundError("The ring has no key with this id.")

    async def _describe(self, ring: RingState, key_id: str) -> KeyAnswer:
        key = ring.key(key_id)
        if key is None:
            raise NotFoundError("The ring has no key with this id.")
        return await describe_key(
            key,
            ring,
            view=self._ring.view(),
            ledger=self._ledger,
            policy=self._manager.policy,
            now=self._clock(),
        )
