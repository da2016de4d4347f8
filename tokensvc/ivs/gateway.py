"""What the service asks of Amazon IVS Real-Time, and the values it gets back.

The Protocol is the seam: the service holds an `IvsGateway` and never a boto3 client. Every method is
one operation of the API (RealTimeAPIReference, `API_*`), or all pages of one, and raises only
`tokensvc.errors.IvsError` and its subclasses. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tokensvc.tokens.claims import StageEndpoints, TokenRequest

__all__ = [
    "IvsGateway",
    "IvsToken",
    "PublicKey",
    "PublicKeySummary",
    "Stage",
    "StageSummary",
]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An imported public key (`PublicKey` of the API model).

    `public_key_pem` is the model's `publicKeyMaterial`, an SPKI PEM. `fingerprint` is IVS's own, whose
    recipe is not documented: compare it only with itself.
    """

    arn: str
    name: str
    public_key_pem: str
    fingerprint: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PublicKeySummary:
    """One entry of ListPublicKeys; it carries no key material."""

    arn: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage with the endpoints that its participant tokens must carry."""

    arn: str
    name: str
    endpoints: StageEndpoints
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One entry of ListStages; endpoints come only from GetStage and CreateStage."""

    arn: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class IvsToken:
    """A participant token that IVS made (`ParticipantToken` of the API model).

    `token` is opaque and secret, so it is not in the repr. `duration` is in minutes,
    `expiration_time` in Unix seconds.
    """

    token: str = field(repr=False)
    participant_id: str
    user_id: str | None
    attributes: Mapping[str, str]
    duration: int
    capabilities: tuple[str, ...]
    expiration_time: int


class IvsGateway(Protocol):
    """Amazon IVS Real-Time, as far as this service uses it.

    Every method raises IvsError subclasses and nothing else: IvsNotFoundError,
    IvsRejectedError, IvsAccessDeniedError, IvsPendingVerificationError, IvsConflictError,
    IvsQuotaExceededError, IvsThrottledError (also when our own call budget is spent),
    IvsUnavailableError. After IvsUnavailableError the call may have taken effect.
    """

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        """Import a P-384 public key (ImportPublicKey); at most 3 keys per Region."""
        ...

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        """Return the public key that IVS holds under `arn` (GetPublicKey)."""
        ...

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        """Return every public key of the Region, whoever owns it (ListPublicKeys, all pages)."""
        ...

    async def get_stage(self, region: str, arn: str) -> Stage:
        """Return a stage and its endpoints (GetStage)."""
        ...

    async def list_stages(self, region: str) -> list[StageSummary]:
        """Return every stage of the Region (ListStages, all pages)."""
        ...

    async def create_stage(self, region: str, *, name: str, tags: Mapping[str, str]) -> Stage:
        """Create a stage (CreateStage). Not idempotent: a retry may make a second one."""
        ...

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """Let IVS make a participant token (CreateParticipantToken); such a token is not exchangeable.

        `request.issuer` is not looked at: whoever calls has decided.
        """
        ...
