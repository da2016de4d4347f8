"""Bringing one's own key: a P-384 pair whose public half is in IVS already, made in the console.

It joins the ring as a checked STANDBY, and from then on is this ring's like any other: it will sign
from the next rotation on, retire, and be deleted at IVS when its tokens have expired.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from tokensvc.errors import IvsNotFoundError, KeyMismatchError
from tokensvc.ivs.gateway import PublicKey
from tokensvc.keyring import phases
from tokensvc.keyring.imports import ImportedKeys, check_account
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState, is_tagged
from tokensvc.keyring.sealing import SealContext, Sealer
from tokensvc.keyring.steps import new_key_id
from tokensvc.keyring.store import RingStore
from tokensvc.signing import (
    Backend,
    SigningKey,
    load_signer,
    public_key_pem,
    read_private_key,
    self_check,
)
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn

__all__ = ["Adoption"]

_log = structlog.get_logger(__name__)


class Adoption:
    """Takes keys that were made elsewhere into the rings of one ring id."""

    def __init__(
        self,
        *,
        store: RingStore,
        imported: ImportedKeys,
        sealer: Sealer,
        ring_id: str,
        backend: Backend | None,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._imported = imported
        self._sealer = sealer
        self._ring_id = ring_id
        self._backend = backend
        self._clock = clock

    async def adopt(self, region: str, private_key: bytes, arn: str) -> KeyRecord:
        """Check that `private_key` (PEM or DER) and the key under `arn` are one, and keep it.

        Doing it twice is doing it once. Raises KeyMismatchError, in words, where the file or the ARN
        cannot be this ring's; IvsNotFoundError where IVS holds no such key; RingConflictError where
        the ring was changed meanwhile; IvsError, SealError, StoreUnavailableError.
        """
        self._check_arn(region, arn)
        try:
            private_key_der = read_private_key(private_key)
        except ValueError as error:
            raise KeyMismatchError(f"The private key file cannot be used: {error}.") from error
        key_id = new_key_id()
        signing_key = SigningKey(key_id, arn, load_signer(private_key_der, self._backend))
        imported = await self._held(region, arn)
        self_check(signing_key, imported.public_key_pem)
        ring = await self._store.load(region)
        known = next((key for key in ring.keys if key.arn == arn), None)
        if known is not None:
            return _still_usable(known)
        check_account(ring, arn)
        if is_tagged(imported.tags):
            raise KeyMismatchError(
                f"{arn} belongs to another key ring, by its tags: two rings must not share a key."
            )
        key = phases.adopt(
            key_id=key_id,
            region=region,
            arn=arn,
            name=imported.name,
            public_key_pem=public_key_pem(private_key_der),
            sealed_private_key=await self._sealer.seal(
                private_key_der, SealContext(self._ring_id, region, key_id)
            ),
            now=self._clock(),
        )
        await self._save(ring, key)
        return key

    async def _save(self, ring: RingState, key: KeyRecord) -> None:
        await self._store.save(ring, ring.with_keys(key))
        _log.info("key_adopted", region=key.region, key_id=key.key_id, arn=key.arn)

    async def _held(self, region: str, arn: str) -> PublicKey:
        held = await self._imported.get(region, arn)
        if held is None:
            raise IvsNotFoundError(f"IVS holds no public key under {arn}.", arn=arn)
        return held

    def _check_arn(self, region: str, arn: str) -> None:
        try:
            parsed = PublicKeyArn.parse(arn)
        except InvalidArnError as error:
            raise KeyMismatchError(f"The ARN cannot be used: {error}.") from error
        if parsed.region != region:
            raise KeyMismatchError(f"The ARN is of {parsed.region}, and the ring of {region}.")


def _still_usable(key: KeyRecord) -> KeyRecord:
    if key.phase in {KeyPhase.STANDBY, KeyPhase.ACTIVE}:
        return key
    raise KeyMismatchError(f"{key.arn} is key {key.key_id} of this ring already, and {key.phase}.")
