"""Does what a key's life needs done: generates, seals, imports, checks, activates, and loads the view.

Each step ends in one stored change, and each begins with what is stored, so `prepare` can be cut off
at any line and called again: it goes on where it stopped. Another process that does the same at the
same time is noticed by the store's compare-and-swap; this one then looks again.

A plain private half exists here only between generating or unsealing it and handing it to the sealer
or the signer. What a phase is and which may follow is not decided here (`phases.py`).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Final

import structlog

from tokensvc.errors import (
    IvsNotFoundError,
    KeyMismatchError,
    RingConflictError,
    SealError,
)
from tokensvc.keyring.imports import ImportedKeys, PublicKeyGateway, Sleep
from tokensvc.keyring.phases import activate, delete, stand_by
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState, check_ring_id, key_name
from tokensvc.keyring.sealing import SealContext, Sealer
from tokensvc.keyring.store import RingStore
from tokensvc.keyring.view import RingView
from tokensvc.signing import (
    Backend,
    Signer,
    SigningKey,
    generate_private_key,
    load_public_key,
    load_signer,
    public_key_pem,
    self_check,
    spki,
)

__all__ = ["RingManager"]

# A first key takes four steps; a key lost at IVS one more; the rest is for meeting other processes.
_MAX_STEPS: Final = 16
# Far beyond any delay with which IVS may show a new key.
_SETTLED_SECONDS: Final = 60.0
_KEY_ID_BYTES: Final = 8
_KEY_ID_CHARS: Final = 12

_log = structlog.get_logger(__name__)


class RingManager:
    """Looks after the keys of one ring, Region by Region; a fault of one Region stays there."""

    def __init__(
        self,
        *,
        store: RingStore,
        sealer: Sealer,
        gateway: PublicKeyGateway,
        clock: Callable[[], float],
        sleep: Sleep,
        ring_id: str,
        signer_backend: Backend | None = None,
    ) -> None:
        """Wire the parts; ValueError for a `ring_id` that is not one (`check_ring_id`).

        `sleep` waits the given seconds (`asyncio.sleep`).
        """
        self._store = store
        self._sealer = sealer
        self._imported = ImportedKeys(gateway, check_ring_id(ring_id), sleep)
        self._clock = clock
        self._ring_id = ring_id
        self._signer_backend = signer_backend
        self._barred: dict[str, str] = {}

    async def prepare(self, region: str) -> KeyRecord:
        """See to it that `region` has one ACTIVE key that IVS verifies, and return it.

        An ACTIVE key is only checked against what GetPublicKey returns. After any error the same
        call may be made again and goes on where this one stopped. Raises IvsError,
        StoreUnavailableError, SealError, KeyMismatchError as its steps do, and RingConflictError
        where other processes keep changing the ring.
        """
        for _ in range(_MAX_STEPS):
            state = await self._store.load(region)
            try:
                if state.active is not None:
                    checked = await self._recheck(state, state.active)
                    if checked is not None:
                        return checked
                elif standby := state.in_phase(KeyPhase.STANDBY):
                    await self._activate(state, standby[0])
                elif generated := state.in_phase(KeyPhase.GENERATED):
                    await self._import(state, generated[0])
                else:
                    await self._generate(state)
            except RingConflictError:
                _log.info("key_ring_changed_meanwhile", region=region)
        raise RingConflictError(
            f"The key ring of {region} keeps being changed by other processes.", region=region
        )

    async def load_view(self) -> RingView:
        """Return the stored ring with its ACTIVE keys ready to sign.

        A key that does not open, or that the last `prepare` found unfit, leaves its Region without a
        signing key, with the reason in the view; the other Regions are not affected. Raises
        StoreUnavailableError.
        """
        rings = await self._store.load_all()
        signing_keys: list[SigningKey] = []
        reasons: dict[str, str] = {}
        for key in filter(None, (ring.active for ring in rings)):
            reason = self._barred.get(key.key_id)
            if reason is None:
                try:
                    signing_keys.append(await self._signing_key(key))
                    continue
                except (SealError, KeyMismatchError) as error:
                    reason = error.detail
            _log.error("key_may_not_sign", region=key.region, key_id=key.key_id, reason=reason)
            reasons[key.region] = reason
        return RingView(signing_keys, (key for ring in rings for key in ring.keys), reasons)

    async def _generate(self, state: RingState) -> None:
        key_id = _new_key_id()
        private_key = generate_private_key()
        key = KeyRecord(
            key_id=key_id,
            region=state.region,
            phase=KeyPhase.GENERATED,
            name=key_name(self._ring_id, key_id),
            public_key_pem=public_key_pem(private_key),
            sealed_private_key=await self._sealer.seal(
                private_key, SealContext(self._ring_id, state.region, key_id)
            ),
            created_at=self._clock(),
        )
        await self._store.save(state, state.with_key(key))
        _log.info("key_generated", region=key.region, key_id=key.key_id)

    async def _import(self, state: RingState, key: KeyRecord) -> None:
        # A half that does not open would waste one of three slots, so it is opened before.
        await self._signer(key)
        arn = await self._imported.arn_of(key)
        await self._store.save(state, state.with_key(stand_by(key, arn=arn, now=self._clock())))

    async def _activate(self, state: RingState, key: KeyRecord) -> None:
        signing_key = await self._signing_key(key)
        imported_at = key.imported_at or 0.0
        try:
            imported = await self._imported.get_new(key.region, signing_key.arn)
        except IvsNotFoundError:
            # Either IVS does not show it yet, or somebody deleted it before it ever signed.
            if self._clock() - imported_at < _SETTLED_SECONDS:
                raise
            if await self._imported.get(key.region, signing_key.arn) is not None:
                raise
            _log.warning("standby_key_unknown_to_ivs", region=key.region, key_id=key.key_id)
            await self._store.save(state, state.with_key(delete(key, now=self._clock())))
            return
        self_check(signing_key, imported.public_key_pem)
        # A clock that was set back must not look like a check that was made before the import.
        now = max(self._clock(), imported_at)
        await self._store.save(state, state.with_key(activate(key, checked_at=now, now=now)))
        _log.info("key_activated", region=key.region, key_id=key.key_id, arn=key.arn)

    async def _recheck(self, state: RingState, key: KeyRecord) -> KeyRecord | None:
        signing_key = await self._signing_key(key)
        try:
            imported = await self._imported.get(key.region, signing_key.arn)
            if imported is not None:
                self_check(signing_key, imported.public_key_pem)
        except KeyMismatchError as error:
            self._barred[key.key_id] = error.detail
            raise
        if imported is not None:
            self._barred.pop(key.key_id, None)
            return key
        _log.error("active_key_unknown_to_ivs", region=key.region, key_id=key.key_id, arn=key.arn)
        # Barred before it is stored: if the store fails now, the key must still not sign.
        self._barred[key.key_id] = f"IVS no longer holds {key.arn}."
        await self._store.save(state, state.with_key(delete(key, now=self._clock())))
        return None

    async def _signing_key(self, key: KeyRecord) -> SigningKey:
        if key.arn is None:
            raise KeyMismatchError(f"Key {key.key_id} was never imported.", key_id=key.key_id)
        return SigningKey(key.key_id, key.arn, await self._signer(key))

    async def _signer(self, key: KeyRecord) -> Signer:
        sealed = key.sealed_private_key
        if sealed is None:
            raise SealError(f"Key {key.key_id} has no private half.", key_id=key.key_id)
        context = SealContext(self._ring_id, key.region, key.key_id)
        try:
            signer = load_signer(await self._sealer.unseal(sealed, context), self._signer_backend)
            stored = spki(load_public_key(key.public_key_pem))
        except ValueError as error:
            raise KeyMismatchError(
                f"The stored halves of key {key.key_id} are not a P-384 pair: {error}.",
                key_id=key.key_id,
            ) from error
        if signer.public_key_der != stored:
            raise KeyMismatchError(
                f"The stored halves of key {key.key_id} do not belong together.",
                key_id=key.key_id,
            )
        return signer


def _new_key_id() -> str:
    random = base64.b32encode(secrets.token_bytes(_KEY_ID_BYTES)).decode("ascii").lower()
    return f"k{random[:_KEY_ID_CHARS]}"
