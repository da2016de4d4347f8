"""Private halves sealed by AWS KMS: the master key never leaves KMS.

A private half is 185 bytes and KMS encrypts up to 4,096 directly (KMS API reference, Encrypt), so there
is no data key. Whose half it is goes along as the encryption context: KMS authenticates it, refuses to
decrypt under another one, and writes it to CloudTrail. A sealed blob is

    version (1 byte) | KMS ciphertext, which names its KMS key
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from tokensvc.errors import SealError
from tokensvc.keyring.sealing import SealContext

__all__ = ["KmsClient", "KmsSealer"]

_VERSION: Final = b"\x02"


class KmsClient(Protocol):
    """One KMS key; `tokensvc.ivs.kms` has it over boto3.

    Both methods raise KmsError where KMS does not answer or refuses, SealError where a ciphertext
    does not decrypt.
    """

    async def encrypt(self, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return the ciphertext (Encrypt)."""
        ...

    async def decrypt(self, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext (Decrypt)."""
        ...


class KmsSealer:
    """A `Sealer` under a key of AWS KMS."""

    def __init__(self, client: KmsClient) -> None:
        self._client = client

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        """Return `private_key` sealed; raises KmsError."""
        return _VERSION + await self._client.encrypt(private_key, _encryption_context(context))

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        """Return what was sealed; SealError for another blob or context, KmsError for KMS's faults."""
        if sealed[:1] != _VERSION:
            raise SealError(
                f"The private half of key {context.key_id} is not sealed by AWS KMS.",
                key_id=context.key_id,
            )
        return await self._client.decrypt(sealed[1:], _encryption_context(context))


def _encryption_context(context: SealContext) -> dict[str, str]:
    return {
        "tokensvc:ring": context.ring_id,
        "tokensvc:region": context.region,
        "tokensvc:key": context.key_id,
    }
