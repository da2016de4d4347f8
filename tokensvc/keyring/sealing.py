"""Private halves at rest: sealed under a master key, bound to the row they belong to.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce; a ring seals a few keys a day, far below
the 2^32 that random nonces allow. A sealed blob is

    version (1 byte) | master key id (8) | nonce (12) | ciphertext and tag

and the version, the master key id and the `SealContext` are authenticated with it: a blob that is
damaged, or moved to another key's row, Region or ring, does not open. Opening never returns part of
a key. The master key itself is never printed, pickled or copied.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tokensvc.errors import SealError
from tokensvc.signing.signer import SecretHolder

__all__ = ["LocalSealer", "SealContext", "Sealer"]

MASTER_KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_MASTER_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = len(_VERSION) + _MASTER_KEY_ID_BYTES


@dataclass(frozen=True, slots=True)
class SealContext:
    """Whose private half it is: what KMS calls an encryption context."""

    ring_id: str
    region: str
    key_id: str

    def associated_data(self) -> bytes:
        """Return the three, each after its length, so that no two contexts encode alike."""
        fields = (field.encode() for field in (self.ring_id, self.region, self.key_id))
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


class Sealer(Protocol):
    """Seals private halves and opens them again; async, since a KMS does it over the network."""

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        """Return `private_key` sealed; opens only with the same context."""
        ...

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        """Return the private half; SealError for a damaged blob, another context or master key."""
        ...


class LocalSealer(SecretHolder):
    """A `Sealer` under a master key that this process holds (`master_key.py`)."""

    __slots__ = ("_aead", "_header")

    def __init__(self, master_key: bytes) -> None:
        """Seal under `master_key`; ValueError unless it is 32 bytes."""
        if len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a master key is {MASTER_KEY_BYTES} bytes")
        self._aead = AESGCM(master_key)
        # The id says under which master key a blob is sealed; a hash of 256 random bits tells no more.
        master_key_id = sha256(b"tokensvc master key id\x00" + master_key).digest()
        self._header = _VERSION + master_key_id[:_MASTER_KEY_ID_BYTES]

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        """Return `private_key` sealed under a fresh nonce."""
        nonce = os.urandom(_NONCE_BYTES)
        associated = self._header + context.associated_data()
        return self._header + nonce + self._aead.encrypt(nonce, private_key, associated)

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        """Return what was sealed; SealError for anything else than that blob in that context."""
        if len(sealed) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise SealError("The sealed private half is too short.", key_id=context.key_id)
        if sealed[:1] != _VERSION:
            raise SealError("The sealed private half is of an unknown form.", key_id=context.key_id)
        if sealed[:_HEADER_BYTES] != self._header:
            raise SealError(
                f"The private half of key {context.key_id} is sealed under another master key.",
                key_id=context.key_id,
            )
        nonce = sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        associated = self._header + context.associated_data()
        try:
            return self._aead.decrypt(nonce, sealed[_HEADER_BYTES + _NONCE_BYTES :], associated)
        except InvalidTag as error:
            raise SealError(
                f"The private half of key {context.key_id} is damaged or not this key's.",
                key_id=context.key_id,
            ) from error
