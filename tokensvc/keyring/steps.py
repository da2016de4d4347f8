"""Takes one step of a ring's plan.

A step ends in at most one stored change, made by compare-and-swap on the ring as it was loaded: a
rotator that acts on an old ring is refused at its write. What a step asks of IVS comes before that
write and may be asked again, so a step that was cut off anywhere is simply taken again.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Final

import structlog

from tokensvc.errors import TokenServiceError
from tokensvc.ivs.gateway import PublicKeySummary
from tokensvc.keyring import phases
from tokensvc.keyring.imports import ImportedKeys, check_account
from tokensvc.keyring.opener import KeyOpener
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState, key_name
from tokensvc.keyring.rotator import (
    Adopt,
    Check,
    Condemn,
    Delete,
    Extend,
    Forget,
    Generate,
    Import,
    Promote,
    Rotate,
    Step,
    Sweep,
    Wait,
)
from tokensvc.keyring.sealing import SealContext, Sealer
from tokensvc.keyring.store import RingStore
from tokensvc.signing import generate_private_key, public_key_pem, self_check

__all__ = ["StepTaker", "new_key_id"]

_KEY_ID_BYTES: Final = 8
_KEY_ID_CHARS: Final = 12
# A ring of which somebody deletes every key as soon as it is there must not fill the store.
_DELETED_KEPT: Final = 100

_log = structlog.get_logger(__name__)


class StepTaker:
    """Takes steps for the rings of one ring id."""

    def __init__(
        self,
        *,
        store: RingStore,
        imported: ImportedKeys,
        opener: KeyOpener,
        sealer: Sealer,
        policy: RotationPolicy,
        ring_id: str,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._imported = imported
        self._opener = opener
        self._sealer = sealer
        self._policy = policy
        self._ring_id = ring_id
        self._clock = clock

    async def take(
        self, ring: RingState, step: Step, listed: tuple[PublicKeySummary, ...] = ()
    ) -> None:
        """Take `step` on `ring`, as it was loaded; taking it again after any error is safe.

        `listed` is what the step was planned on; an Import finds there what was imported before.

        Raises IvsError, StoreUnavailableError, SealError, KeyMismatchError, and RingConflictError
        where the ring was changed meanwhile.
        """
        match step:
            case Generate():
                await self._generate(ring)
            case Import(key):
                await self._import(ring, key, listed)
            case Check(key):
                await self._check(ring, key)
            case Promote(key):
                await self._save(ring, await self._activated(key))
                _log.info("key_activated", region=key.region, key_id=key.key_id, arn=key.arn)
            case Rotate(old, new):
                await self._rotate(ring, old, new)
            case Forget(key, successor):
                await self._forget(ring, key, successor)
            case Extend(key):
                longer = phases.extend(key, longest_ttl=self._policy.longest_ttl)
                await self._save(ring, longer)
            case Condemn(key, evidence):
                await self._save(ring, phases.condemn(key, evidence, now=self._clock()))
                _log.info("key_drained", region=key.region, key_id=key.key_id)
            case Delete(key):
                await self._delete(ring, key)
            case Sweep(arn):
                await self._imported.delete(ring.region, arn)
                _log.warning("stray_key_deleted", region=ring.region, arn=arn)
            case Adopt(orphan):
                await self._adopt_orphan(ring, orphan.key_id, orphan.arn, orphan.name)
            case Wait():
                return

    async def _generate(self, ring: RingState) -> None:
        key_id = new_key_id()
        private_key = generate_private_key()
        key = KeyRecord(
            key_id=key_id,
            region=ring.region,
            phase=KeyPhase.GENERATED,
            name=key_name(self._ring_id, key_id),
            public_key_pem=public_key_pem(private_key),
            sealed_private_key=await self._sealer.seal(
                private_key, SealContext(self._ring_id, ring.region, key_id)
            ),
            created_at=self._clock(),
        )
        old = ring.in_phase(KeyPhase.DELETED)[:-_DELETED_KEPT]
        kept = tuple(other for other in ring.keys if other not in old)
        await self._store.save(ring, (*kept, key))
        _log.info("key_generated", region=key.region, key_id=key.key_id)

    async def _import(
        self, ring: RingState, key: KeyRecord, listed: tuple[PublicKeySummary, ...]
    ) -> None:
        # A half that does not open would waste one of three slots, so it is opened before.
        await self._opener.signer(key)
        arn = await self._imported.arn_of(key, ring.owner, listed)
        check_account(ring, arn)
        await self._save(ring, phases.stand_by(key, arn=arn, now=self._clock()))

    async def _check(self, ring: RingState, key: KeyRecord) -> None:
        signing_key = await self._opener.open(key)
        imported = await self._imported.get_new(key.region, signing_key.arn)
        self_check(signing_key, imported.public_key_pem)
        # A clock that was set back must not look like a check that was made before the import.
        now = max(self._clock(), key.imported_at or 0.0)
        await self._save(ring, phases.checked(key, now=now))
        _log.info("standby_key_checked", region=key.region, key_id=key.key_id, arn=key.arn)

    async def _rotate(self, ring: RingState, old: KeyRecord, new: KeyRecord) -> None:
        active = await self._activated(new)
        await self._save(ring, phases.retire(old, now=self._clock()), active)
        _log.info("key_rotated", region=ring.region, retired=old.key_id, active=new.key_id)

    async def _forget(self, ring: RingState, key: KeyRecord, successor: KeyRecord | None) -> None:
        changed = [phases.gone(key, now=self._clock())]
        if successor is not None:
            try:
                changed.append(await self._activated(successor))
            except TokenServiceError as error:
                # The lost key must not sign, whatever keeps the other one from it (KMS, say).
                _log.error("standby_key_unfit", key_id=successor.key_id, reason=error.detail)
        await self._save(ring, *changed)
        _log.error(
            "key_unknown_to_ivs",
            region=key.region,
            key_id=key.key_id,
            arn=key.arn,
            phase=key.phase.value,
            successor=changed[1].key_id if changed[1:] else None,
        )

    async def _delete(self, ring: RingState, key: KeyRecord) -> None:
        deleted = phases.delete(key, now=self._clock())
        if key.arn is not None:
            await self._imported.delete(key.region, key.arn)
        await self._save(ring, deleted)
        _log.info(
            "key_deleted",
            region=key.region,
            key_id=key.key_id,
            arn=key.arn,
            reason=deleted.delete_reason,
        )

    async def _adopt_orphan(self, ring: RingState, key_id: str, arn: str, name: str) -> None:
        imported = await self._imported.get(ring.region, arn)
        if imported is None:
            return
        orphan = phases.adopt_orphan(
            key_id=key_id,
            region=ring.region,
            arn=arn,
            name=name,
            public_key_pem=imported.public_key_pem,
            # What it signed may be from when longer tokens were allowed.
            longest_ttl=max(
                self._policy.longest_ttl, *(key.longest_ttl or 0.0 for key in ring.keys)
            ),
            now=self._clock(),
        )
        await self._save(ring, orphan)
        _log.warning("orphaned_key_adopted", region=ring.region, key_id=key_id, arn=arn)

    async def _activated(self, key: KeyRecord) -> KeyRecord:
        # Opened and checked against the stored half: what IVS holds was compared with that before.
        self_check(await self._opener.open(key), key.public_key_pem)
        return phases.activate(key, longest_ttl=self._policy.longest_ttl, now=self._clock())

    async def _save(self, ring: RingState, *changed: KeyRecord) -> None:
        await self._store.save(ring, ring.with_keys(*changed))


def new_key_id() -> str:
    """Return a random id of 13 characters: `k` and 60 bits in base32."""
    random = base64.b32encode(secrets.token_bytes(_KEY_ID_BYTES)).decode("ascii").lower()
    return f"k{random[:_KEY_ID_CHARS]}"
