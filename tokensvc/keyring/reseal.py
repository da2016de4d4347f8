"""Sealing all private halves anew, under another master key.

While it runs, and until every replica knows the new master key, halves under both are in the store:
give replicas `AnySealer(new, old)` first, reseal, then take the old key away. Cut off, it is run again:
what is sealed under the new key already is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import structlog

from tokensvc.errors import KmsError, RingConflictError, SealError
from tokensvc.keyring.record import KeyRecord, RingState
from tokensvc.keyring.sealing import SealContext, Sealer
from tokensvc.keyring.store import RingStore

__all__ = ["AnySealer", "ResealReport", "reseal"]

_MAX_CONFLICTS: Final = 8

_log = structlog.get_logger(__name__)


class AnySealer:
    """Seals under the first of several master keys, and opens under whichever fits."""

    def __init__(self, first: Sealer, *others: Sealer) -> None:
        self._sealers = (first, *others)

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        """Return `private_key` sealed under the first master key."""
        return await self._sealers[0].seal(private_key, context)

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        """Return the private half; SealError, the first sealer's, where none opens it.

        Raises KmsError instead where one of them could not be asked, and might have.
        """
        refusals: list[SealError | KmsError] = []
        for sealer in self._sealers:
            try:
                return await sealer.unseal(sealed, context)
            except (SealError, KmsError) as error:
                refusals.append(error)
        raise next((one for one in refusals if isinstance(one, KmsError)), refusals[0])


@dataclass(frozen=True, slots=True)
class ResealReport:
    """Ids of the keys that were sealed anew, and of those that were under the new key already."""

    resealed: tuple[str, ...]
    already: tuple[str, ...]


async def reseal(store: RingStore, ring_id: str, *, old: Sealer, new: Sealer) -> ResealReport:
    """Seal every private half of the ring that `old` opens under `new`; one write per Region.

    Raises SealError where a half opens under neither, with that Region unchanged; KmsError,
    StoreUnavailableError; and RingConflictError where other processes keep changing a ring.
    """
    resealed: list[str] = []
    already: list[str] = []
    for ring in await store.load_all():
        done = await _reseal_region(store, ring_id, ring.region, old, new)
        resealed += done.resealed
        already += done.already
    return ResealReport(tuple(resealed), tuple(already))


async def _reseal_region(
    store: RingStore, ring_id: str, region: str, old: Sealer, new: Sealer
) -> ResealReport:
    for _ in range(_MAX_CONFLICTS):
        ring = await store.load(region)
        changed, already = await _reseal_keys(ring, ring_id, old, new)
        report = ResealReport(tuple(key.key_id for key in changed), already)
        if not changed:
            return report
        try:
            await store.save(ring, ring.with_keys(*changed))
        except RingConflictError:
            continue
        _log.info("key_ring_resealed", region=region, keys=report.resealed)
        return report
    raise RingConflictError(
        f"The key ring of {region} keeps being changed by other processes.", region=region
    )


async def _reseal_keys(
    ring: RingState, ring_id: str, old: Sealer, new: Sealer
) -> tuple[list[KeyRecord], tuple[str, ...]]:
    changed: list[KeyRecord] = []
    already: list[str] = []
    for key in ring.keys:
        if key.sealed_private_key is None:
            continue
        context = SealContext(ring_id, ring.region, key.key_id)
        if await _opens(new, key.sealed_private_key, context):
            already.append(key.key_id)
            continue
        private_key = await old.unseal(key.sealed_private_key, context)
        sealed = await new.seal(private_key, context)
        # What replaces the only copy must be known to open.
        if await new.unseal(sealed, context) != private_key:
            raise SealError(f"Key {key.key_id} does not open under the new master key.")
        changed.append(replace(key, sealed_private_key=sealed))
    return changed, tuple(already)


async def _opens(sealer: Sealer, sealed: bytes, context: SealContext) -> bool:
    try:
        await sealer.unseal(sealed, context)
    except (SealError, KmsError):
        # One that is down seals nothing either, which comes next, and changes nothing.
        return False
    return True
