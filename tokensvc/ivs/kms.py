"""AWS KMS over boto3, as far as sealing private halves needs it (KMS API reference: Encrypt, Decrypt).

Calls run in threads under a deadline, like those to IVS. Nothing of a plaintext is logged or kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from botocore import exceptions

from tokensvc.errors import IvsError, KmsError, SealError
from tokensvc.ivs.clients import ClientSettings, StaticCredentials, make_config, make_session
from tokensvc.ivs.threads import CallThreads

__all__ = ["BotoKmsClient"]

_MAX_THREADS: Final = 2
_MAX_WAITING: Final = 16
_RETRY_AFTER_SECONDS: Final = 2.0
# The ciphertext, or what goes with it, is wrong; no retry will help.
_NOT_OURS: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class BotoKmsClient:
    """Implements `keyring.kms.KmsClient`; belongs to one event loop; `aclose` ends its threads."""

    def __init__(
        self,
        key_id: str,
        region: str,
        *,
        settings: ClientSettings | None = None,
        credentials: StaticCredentials | None = None,
    ) -> None:
        """Use the KMS key `key_id` (ARN, id or alias) of `region`; no call is made yet."""
        self._key_id = key_id
        self._region = region
        self._settings = settings or ClientSettings()
        self._credentials = credentials
        self._lock = threading.Lock()
        self._client: Any = None
        self._threads = CallThreads(
            max_threads=_MAX_THREADS,
            max_waiting=_MAX_WAITING,
            deadline_seconds=self._settings.deadline(),
        )

    async def encrypt(self, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return the ciphertext; raises KmsError."""
        return await self._run(
            "Encrypt",
            lambda client: client.encrypt(
                KeyId=self._key_id, Plaintext=plaintext, EncryptionContext=dict(context)
            )["CiphertextBlob"],
        )

    async def decrypt(self, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext; SealError where it does not decrypt, KmsError for KMS's faults."""
        # With the key named, KMS decrypts nothing that another key encrypted.
        return await self._run(
            "Decrypt",
            lambda client: client.decrypt(
                KeyId=self._key_id, CiphertextBlob=ciphertext, EncryptionContext=dict(context)
            )["Plaintext"],
        )

    async def aclose(self) -> None:
        """Refuse further calls, wait for those under way, close."""
        await self._threads.aclose()
        if self._client is not None:
            self._client.close()

    async def _run(self, operation: str, call: Callable[[Any], bytes]) -> bytes:
        try:
            return await self._threads.run(
                lambda: self._in_thread(operation, call), operation=operation, region=self._region
            )
        except IvsError as error:
            # The threads are shared code and speak of IVS.
            raise KmsError(
                "AWS KMS did not answer in time.",
                retry_after=_RETRY_AFTER_SECONDS,
                operation=operation,
                region=self._region,
            ) from error

    def _in_thread(self, operation: str, call: Callable[[Any], bytes]) -> bytes:
        try:
            return bytes(call(self._open()))
        except exceptions.ClientError as error:
            raise _translate(error, operation) from error
        except Exception as error:
            # Whatever botocore raises must not get out of this package.
            raise KmsError(
                "AWS KMS does not answer.",
                retry_after=_RETRY_AFTER_SECONDS,
                operation=operation,
                error_type=type(error).__name__,
            ) from error

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = make_session(self._credentials).client(
                    "kms",
                    region_name=self._region,
                    endpoint_url=self._settings.endpoint_url,
                    config=make_config(self._settings, repeatable=True),
                )
            return self._client


def _translate(error: exceptions.ClientError, operation: str) -> SealError | KmsError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _NOT_OURS:
        return SealError(
            "AWS KMS does not open the private half: another KMS key, another row, or damage.",
            operation=operation,
            aws_code=code,
        )
    return KmsError(
        f"AWS KMS refuses the master key ({code}).",
        retry_after=_RETRY_AFTER_SECONDS,
        operation=operation,
        aws_code=code,
    )
