"""What the service asks of Amazon IVS Real-Time, and the values it gets back.

The Protocol is the seam: the service holds an `IvsGateway` and never a boto3 client. Every method is
one operation of the API (RealTimeAPIReference, `API_*`), or all pages of one, and raises only
`tokensvc.errors.IvsError` and its subclasses. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokensvc.tokens.claims import StageEndpoints, TokenRequest

__all__ = [
    "IvsGateway",
    "IvsToken",
    "Participant",
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
    """A stage with the endpoints that its participant tokens must carry.

    `active_session_id` is the session that participants are connected to now; a stage in which nobody
    is has none.
    """

    arn: str
    name: str
    endpoints: StageEndpoints
    tags: Mapping[str, str]
    active_session_id: str | None = None


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One entry of ListStages; endpoints come only from GetStage and CreateStage."""

    arn: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Participant:
    """One entry of ListParticipants (`ParticipantSummary` of the API model).

    `participant_id` is the `jti` of the token it joined with. `user_id` is None where the token has
    none. `first_join_time` is in Unix seconds.
    """

    participant_id: str
    user_id: str | None
    state: Literal["CONNECTED", "DISCONNECTED"]
    published: bool
    first_join_time: float | None


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

    async def delete_public_key(self, region: str, arn: str) -> None:
        """Delete a public key (DeletePublicKey): no token made with it can join from then on.

        IvsNotFoundError means that IVS holds no such key, so it is gone. That can be the answer to a
        first call as well: when the answer to an attempt is lost, the attempt that follows finds the
        key deleted already. How long a deletion takes to reach every verifier is not documented.
        """
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

    async def list_participants(
        self, region: str, *, stage_arn: str, user_id: str | None = None
    ) -> list[Participant]:
        """Return who is connected to the stage now, in no order; with `user_id`, only that user.

        Asks GetStage for the active session, then ListParticipants for all its pages: at 5 pages of
        100 a second, a full stage takes 20 s. An empty list where the stage has no active session.
        Raises IvsNotFoundError for a stage that does not exist.
        """
        ...

    async def disconnect_participant(
        self, region: str, *, stage_arn: str, participant_id: str, reason: str = ""
    ) -> None:
        """Disconnect a participant for good: its token cannot be used again (DisconnectParticipant).

        `reason` has at most 128 characters. IvsNotFoundError does not mean that the token is revoked:
        what IVS answers for a participant that never joined is not documented. May be repeated.
        """
        ...

    async def revoke_connection_token(self, region: str, token_id: str) -> None:
        """Revoke a connection token by its `jti` and disconnect whoever uses it.

        RevokeConnectionToken models no answer for an unknown id, so success does not mean that there
        was such a token. May be repeated.
        """
        ...
