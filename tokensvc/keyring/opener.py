"""From a stored record to a key that can sign, and nothing in between that could leak.

The plain private half exists here only between the sealer and the signer. What was opened is kept
while its record stays in the ring, so that a key manager (KMS) that is down does not take a signing
key away, and a standby is open before it is promoted.
"""

from __future__ import annotations

from collections.abc import Collection

from tokensvc.errors import KeyMismatchError, SealError
from tokensvc.keyring.record import KeyRecord
from tokensvc.keyring.sealing import SealContext, Sealer
from tokensvc.signing import Backend, Signer, SigningKey, load_public_key, load_signer, spki

__all__ = ["KeyOpener"]


class KeyOpener:
    """Opens the keys of one ring id."""

    def __init__(self, sealer: Sealer, ring_id: str, backend: Backend | None) -> None:
        self._sealer = sealer
        self._ring_id = ring_id
        self._backend = backend
        self._opened: dict[str, SigningKey] = {}

    def __repr__(self) -> str:
        return f"<KeyOpener {len(self._opened)} open>"

    async def open(self, key: KeyRecord) -> SigningKey:
        """Return `key` ready to sign, opened now or before.

        Raises SealError where its private half does not open, KeyMismatchError where the stored
        halves do not belong together or it was never imported.
        """
        opened = self._opened.get(key.key_id)
        if opened is not None and opened.arn == key.arn and key.sealed_private_key is not None:
            return opened
        if key.arn is None:
            raise KeyMismatchError(f"Key {key.key_id} was never imported.", key_id=key.key_id)
        opened = SigningKey(key.key_id, key.arn, await self.signer(key))
        self._opened[key.key_id] = opened
        return opened

    async def signer(self, key: KeyRecord) -> Signer:
        """Return the signer of a key that may have no ARN yet; raises as `open` does."""
        sealed = key.sealed_private_key
        if sealed is None:
            raise SealError(f"Key {key.key_id} has no private half.", key_id=key.key_id)
        context = SealContext(self._ring_id, key.region, key.key_id)
        try:
            signer = load_signer(await self._sealer.unseal(sealed, context), self._backend)
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

    def keep_only(self, key_ids: Collection[str]) -> None:
        """Let go of every opened key that is not among `key_ids`."""
        self._opened = {key_id: key for key_id, key in self._opened.items() if key_id in key_ids}
