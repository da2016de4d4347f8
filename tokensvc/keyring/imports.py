"""The public half of a key at IVS: importing it once, and finding it again.

The answer of ImportPublicKey can be lost after IVS has imported the key. So a key is looked for, by
the name and tags that carry its id, before it is imported, and what is found is adopted only if its
material is the key's. Keys that are not tagged as ours are never looked at closer.

A quota of 3 public keys per Region makes each import precious (Service Quotas, RealTimeUserGuide):
nothing here imports twice because it was impatient.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from tokensvc.errors import IvsConflictError, IvsNotFoundError, KeyMismatchError
from tokensvc.ivs.gateway import PublicKey, PublicKeySummary
from tokensvc.keyring.record import KeyRecord, RingState, key_tags
from tokensvc.signing import load_public_key, spki
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn

__all__ = ["ImportedKeys", "PublicKeyGateway", "Sleep", "check_account"]

Sleep = Callable[[float], Awaitable[None]]

# How long IVS takes to show a new key is not documented; 7.75 seconds in all, then the caller decides.
_PROPAGATION_DELAYS_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)

_log = structlog.get_logger(__name__)


class PublicKeyGateway(Protocol):
    """What a key ring asks of IVS; part of `tokensvc.ivs.gateway.IvsGateway`, same errors."""

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        """Import a public key (ImportPublicKey)."""
        ...

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        """Return the public key under `arn` (GetPublicKey), or raise IvsNotFoundError."""
        ...

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        """Return every public key of the Region, whoever owns it (ListPublicKeys)."""
        ...

    async def delete_public_key(self, region: str, arn: str) -> None:
        """Delete the public key under `arn` (DeletePublicKey), or raise IvsNotFoundError."""
        ...


class ImportedKeys:
    """The keys of one ring as IVS holds them."""

    def __init__(self, gateway: PublicKeyGateway, ring_id: str, sleep: Sleep) -> None:
        """Ask `gateway`, and wait with `sleep` for a key to show up."""
        self._gateway = gateway
        self._ring_id = ring_id
        self._sleep = sleep

    async def list(self, region: str) -> tuple[PublicKeySummary, ...]:
        """Return every public key of the Region, whoever owns it."""
        return tuple(await self._gateway.list_public_keys(region))

    async def arn_of(self, key: KeyRecord, owner: str, listed: Iterable[PublicKeySummary]) -> str:
        """Return the ARN of `key`, importing it unless an earlier attempt already did.

        `owner` is the ring's, `listed` what IVS lists, asked after any earlier attempt.

        Raises KeyMismatchError where a key named and tagged as this one has other material, and
        IvsError as the gateway does; after any of them the same call may be made again.
        """
        found = await self._find(key, owner, listed)
        if found is not None:
            return found
        try:
            imported = await self._gateway.import_public_key(
                key.region,
                public_key_pem=key.public_key_pem,
                name=key.name,
                tags=key_tags(self._ring_id, owner, key.key_id),
            )
        except IvsConflictError:
            # IVS has this material and did not list it yet: an earlier import whose answer was lost.
            for delay in _PROPAGATION_DELAYS_SECONDS:
                await self._sleep(delay)
                found = await self._find(key, owner, await self.list(key.region))
                if found is not None:
                    return found
            raise
        _log.info("public_key_imported", region=key.region, key_id=key.key_id, arn=imported.arn)
        return imported.arn

    async def get_new(self, region: str, arn: str) -> PublicKey:
        """Return a key imported just now, waiting a bounded time for it to show up.

        Raises IvsNotFoundError where it has not by then.
        """
        for delay in _PROPAGATION_DELAYS_SECONDS:
            try:
                return await self._gateway.get_public_key(region, arn)
            except IvsNotFoundError:
                await self._sleep(delay)
        return await self._gateway.get_public_key(region, arn)

    async def get(self, region: str, arn: str) -> PublicKey | None:
        """Return the key under `arn`, or None where IVS holds it no more.

        One "not found" is not believed alone: ListPublicKeys must not have it either, and must not
        show that we ask another account than the one that holds it (KeyMismatchError), for on that
        answer a private half is destroyed.
        """
        try:
            return await self._gateway.get_public_key(region, arn)
        except IvsNotFoundError:
            listed = await self._gateway.list_public_keys(region)
            if any(summary.arn == arn for summary in listed):
                raise
        account = PublicKeyArn.parse(arn).account
        if any(_account(summary.arn) not in {account, None} for summary in listed):
            raise KeyMismatchError(
                f"IVS in {region} answers for another AWS account than {account}, which holds "
                f"{arn}: check the credentials."
            )
        return None

    async def delete(self, region: str, arn: str) -> None:
        """See to it that IVS does not hold `arn`.

        Raises IvsError as the gateway does; the same call may then be made again.
        """
        try:
            await self._gateway.delete_public_key(region, arn)
        except IvsNotFoundError:
            # An earlier attempt whose answer was lost, or somebody else; but not a wrong account.
            if await self._is_held(region, arn):
                raise

    async def _is_held(self, region: str, arn: str) -> bool:
        try:
            return await self.get(region, arn) is not None
        except IvsNotFoundError:
            # Listed, and neither to be got nor to be deleted: the list is behind.
            return False

    async def _find(
        self, key: KeyRecord, owner: str, listed: Iterable[PublicKeySummary]
    ) -> str | None:
        tags = key_tags(self._ring_id, owner, key.key_id)
        arns = sorted(
            summary.arn
            for summary in listed
            if summary.name == key.name and tags.items() <= dict(summary.tags).items()
        )
        if not arns:
            return None
        imported = await self._gateway.get_public_key(key.region, arns[0])
        if not _same_material(imported.public_key_pem, key.public_key_pem):
            raise KeyMismatchError(
                f"IVS holds another public key under the name {key.name}: delete {arns[0]} there.",
                key_id=key.key_id,
            )
        _log.info("public_key_found_again", region=key.region, key_id=key.key_id, arn=arns[0])
        if arns[1:]:
            _log.warning("public_key_imported_twice", key_id=key.key_id, unused=arns[1:])
        return arns[0]


def check_account(ring: RingState, arn: str) -> None:
    """Raise KeyMismatchError where `arn` is of another AWS account than the keys of `ring`.

    A key signs for the stages of its own account alone; under one of another account no token joins.
    """
    account = _account(arn)
    if ring.account not in {None, account}:
        raise KeyMismatchError(
            f"{arn} is of another AWS account than the keys of this ring, {ring.account}: check the"
            " credentials, and delete it there. A ring is of one account; another one needs another"
            " TOKENSVC_RING_ID."
        )


def _account(arn: str) -> str | None:
    try:
        return PublicKeyArn.parse(arn).account
    except InvalidArnError:
        return None


def _same_material(left: str, right: str) -> bool:
    try:
        return spki(load_public_key(left)) == spki(load_public_key(right))
    except ValueError:
        return False
