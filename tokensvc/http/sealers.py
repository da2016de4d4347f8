"""Under what private halves are sealed, as the settings say: a master key file, or a key of AWS KMS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tokensvc.ivs.clients import ClientSettings
from tokensvc.ivs.kms import BotoKmsClient
from tokensvc.keyring import LocalSealer, Sealer, load_master_key
from tokensvc.keyring.kms import KmsSealer
from tokensvc.keyring.reseal import AnySealer
from tokensvc.settings import Settings

__all__ = ["Sealers", "local_sealer", "open_sealers"]


@dataclass(frozen=True, slots=True)
class Sealers:
    """`sealer` opens whatever the settings know a master key of; `first` is what seals."""

    sealer: Sealer
    first: Sealer


@asynccontextmanager
async def open_sealers(settings: Settings) -> AsyncIterator[Sealers]:
    """Open what the settings name; raises ConfigurationError where a master key file is unfit."""
    async with AsyncExitStack() as closing:
        first: Sealer
        if settings.kms_key_id is None:
            first = await local_sealer(settings.master_key_file)
        else:
            first = _kms_sealer(settings, settings.kms_key_id, closing)
        before: list[Sealer] = []
        if settings.old_master_key_file is not None:
            before.append(await local_sealer(settings.old_master_key_file))
        if settings.old_kms_key_id is not None:
            before.append(_kms_sealer(settings, settings.old_kms_key_id, closing))
        yield Sealers(AnySealer(first, *before) if before else first, first)


def _kms_sealer(settings: Settings, key_id: str, closing: AsyncExitStack) -> Sealer:
    client = BotoKmsClient(
        key_id,
        settings.kms_region or _region_of(key_id) or settings.require_regions()[0],
        settings=ClientSettings(
            endpoint_url=settings.kms_endpoint_url,
            connect_timeout_seconds=settings.aws_connect_timeout,
            read_timeout_seconds=settings.aws_read_timeout,
            total_max_attempts=settings.aws_max_attempts,
        ),
    )
    closing.push_async_callback(client.aclose)
    return KmsSealer(client)


async def local_sealer(path: Path) -> LocalSealer:
    """Return the sealer under the master key in `path`; raises ConfigurationError."""
    return LocalSealer(await asyncio.to_thread(load_master_key, path))


def _region_of(kms_key_id: str) -> str | None:
    # arn:aws:kms:<region>:<account>:key/<id>
    parts = kms_key_id.split(":")
    return parts[3] if parts[0] == "arn" and len(parts) > 5 and parts[3] else None
