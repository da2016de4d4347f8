"""The parts of a running service, as handlers see them.

`app.py` makes one when the service starts and puts it where `service_of` finds it; nothing here makes
anything or does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol

from litestar import Request
from litestar.datastructures import State

from tokensvc.errors import ForbiddenError
from tokensvc.http.bodies import BatchBody
from tokensvc.http.facts import RequestFacts, facts_of
from tokensvc.http.key_operations import KeyOperations
from tokensvc.http.readiness import Readiness
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ivs.gateway import PublicKey
from tokensvc.keyring.view import RingView
from tokensvc.ledger import Ledger
from tokensvc.policy import PolicyGate
from tokensvc.revocation import Revocations
from tokensvc.telemetry.audit import Audit
from tokensvc.telemetry.metrics import Metrics

__all__ = [
    "SERVICE_KEY",
    "Authenticated",
    "Authenticator",
    "Service",
    "authorize",
    "install",
    "service_of",
]


_READING: Final = ":read"


class Authenticated(Protocol):
    """Who calls."""

    @property
    def caller_id(self) -> str:
        """The caller's public id."""
        ...

    @property
    def name(self) -> str:
        """The name that policies know the caller by."""
        ...

    @property
    def scopes(self) -> Collection[str]:
        """What the caller may do."""
        ...


class Authenticator(Protocol):
    """Knows the callers."""

    async def authenticate(self, authorization: str | None) -> Authenticated:
        """Return who sends this `Authorization` header; raises UnauthenticatedError.

        Where the caller comes with a token of an issuer, IdentityProviderError as well.
        """
        ...

    def recognise(self, authorization: str | None) -> Authenticated | None:
        """Return who sends this header, where that is known at once; None: ask `authenticate`."""
        ...


class PublicKeys(Protocol):
    """The public keys that IVS holds."""

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        """Return the key under `arn`; raises IvsError."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """One running service. Bodies are bounded in bytes, durations in minutes."""

    desk: TokenDesk
    revocations: Revocations
    ledger: Ledger
    callers: Authenticator
    gate: PolicyGate
    keys: KeyOperations
    view: Callable[[], RingView]
    public_keys: PublicKeys
    readiness: Readiness
    is_alive: Callable[[], bool]
    """False where only another process can do this one's work again."""
    metrics: Metrics
    audit: Audit
    clock: Callable[[], float]
    regions: frozenset[str]
    max_duration: int
    max_connection_duration: int
    max_body_bytes: int
    max_batch_body_bytes: int
    cut_batch: Callable[[bytes], BatchBody]
    new_slices: Callable[[], LoopSlices] = LoopSlices


SERVICE_KEY: Final = "tokensvc.service"
"""Where a scope may have the service, for whoever made the scope."""


def install(state: State, service: Service | None) -> None:
    """Put the service where `service_of` finds it; None when it has stopped."""
    state.service = service


def service_of(request: Request[Any, Any, Any]) -> Service:
    """Return the service that answers `request`."""
    kept = request.scope.get(SERVICE_KEY)
    service: Service = request.app.state.service if kept is None else kept  # type: ignore[assignment]
    return service


async def authorize(
    request: Request[Any, Any, Any], service: Service, scope: str, *others: str
) -> RequestFacts:
    """See to it that the caller is known and has `scope`, or one of `others`; return the facts.

    Raises UnauthenticatedError, IdentityProviderError, ForbiddenError, and AuditUnavailableError where
    what the caller wants to do has to be recorded and cannot be.
    """
    facts = facts_of(request.scope)
    header = facts.headers.get(b"authorization")
    caller = await service.callers.authenticate(
        None if header is None else header.decode("latin-1")
    )
    facts.caller_id = caller.caller_id
    facts.caller_name = caller.name
    if not scope.endswith(_READING):
        service.audit.check()
    scopes = caller.scopes
    if scope not in scopes and not (others and any(other in scopes for other in others)):
        raise ForbiddenError(f"This caller has not the scope {scope}.", scope=scope)
    return facts
