"""Every error that tokensvc raises on purpose.

An error has a public half and a private one. `detail` and `errors` are written for the caller and may
leave the process; `context` is for the log and must never leave it. `code` is stable: callers may
switch on it, so a code is added, never renamed. `docs/errors.md` lists them all, and a test keeps
that list complete.

No error ever carries a token, a private key or an API secret, in either half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

__all__ = [
    "AuditUnavailableError",
    "BannedError",
    "BodyTooLargeError",
    "ConfigurationError",
    "FallbackSaturatedError",
    "FieldError",
    "ForbiddenError",
    "IdempotencyConflictError",
    "IdentityProviderError",
    "InvalidRequestError",
    "IvsAccessDeniedError",
    "IvsConflictError",
    "IvsError",
    "IvsNotFoundError",
    "IvsPendingVerificationError",
    "IvsQuotaExceededError",
    "IvsRejectedError",
    "IvsThrottledError",
    "IvsUnavailableError",
    "KeyMismatchError",
    "KmsError",
    "LedgerBusyError",
    "MalformedJsonError",
    "MethodNotAllowedError",
    "NoSigningKeyError",
    "NotExchangeableError",
    "NotFoundError",
    "NotRepeatableError",
    "OverloadedError",
    "PolicyDeniedError",
    "RateLimitedError",
    "RequestTimeoutError",
    "RingConflictError",
    "RingDamagedError",
    "SealError",
    "StageNotFoundError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "TokenServiceError",
    "UnauthenticatedError",
    "UnsupportedMediaTypeError",
]


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request.

    `field` is a path as the caller wrote it (`attributes.team`, `tokens[3].userId`); `limit` is the
    bound that was crossed, where there is one, in the unit that `detail` names.
    """

    field: str
    code: str
    detail: str
    limit: int | str | None = None


class TokenServiceError(Exception):
    """The root of all errors raised on purpose; see the module's docstring."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
        **context: object,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after
        """Seconds after which the same request may succeed."""
        self.context = context


class ConfigurationError(TokenServiceError):
    """The settings, or what they point at, cannot work; said in one line, at start."""

    code = "configuration"
    title = "Configuration error"


# --- the caller's fault ---------------------------------------------------------------------------


class InvalidRequestError(TokenServiceError):
    """The request was understood and breaks a rule; `errors` names every bad field."""

    code = "invalid_request"
    status = 400
    title = "Invalid request"


class MalformedJsonError(TokenServiceError):
    """The body is not JSON (RFC 8259) in UTF-8."""

    code = "malformed_json"
    status = 400
    title = "Malformed JSON"


class UnauthenticatedError(TokenServiceError):
    """No API key, or one that is unknown, revoked or expired; which one is not said."""

    code = "unauthenticated"
    status = 401
    title = "Unauthenticated"


class IdentityProviderError(TokenServiceError):
    """The OIDC issuer's keys cannot be had, so its tokens cannot be checked; API keys still can."""

    code = "identity_provider_unavailable"
    status = 503
    title = "Identity provider unavailable"


class PolicyDeniedError(TokenServiceError):
    """The policy does not let this caller ask for this; `errors` names field, limit and rule."""

    code = "policy_denied"
    status = 403
    title = "Denied by policy"


class RateLimitedError(TokenServiceError):
    """The caller, or one of its users, has spent its tokens a second; `Retry-After` says how long.

    `headers` are those of the answer beside `Retry-After`: what the limits are and what is left.
    """

    code = "rate_limited"
    status = 429
    title = "Rate limited"

    def __init__(
        self,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        **context: object,
    ) -> None:
        super().__init__(detail, errors=errors, retry_after=retry_after, **context)
        self.headers = headers


class ForbiddenError(TokenServiceError):
    """The caller is known, and may not do this: its API key lacks the scope."""

    code = "forbidden"
    status = 403
    title = "Forbidden"


class BannedError(TokenServiceError):
    """A ban keeps this user, participant or stage from being issued tokens; `detail` names its id and end.

    `ban_id` and `until` (Unix seconds, None: for good) are for the caller, too: `banId` and
    `bannedUntil` of the problem.
    """

    code = "banned"
    status = 403
    title = "Banned"

    def __init__(
        self,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
        ban_id: str | None = None,
        until: float | None = None,
        **context: object,
    ) -> None:
        super().__init__(detail, errors=errors, retry_after=retry_after, **context)
        self.ban_id = ban_id
        self.until = until


class NotFoundError(TokenServiceError):
    """No such route or thing."""

    code = "not_found"
    status = 404
    title = "Not found"


class MethodNotAllowedError(TokenServiceError):
    """The route exists and takes other methods; the `Allow` header names them."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class StageNotFoundError(TokenServiceError):
    """IVS knows no such stage (`GetStage` answered ResourceNotFoundException)."""

    code = "stage_not_found"
    status = 404
    title = "Stage not found"


class IdempotencyConflictError(TokenServiceError):
    """The `Idempotency-Key` was used before with another request."""

    code = "idempotency_conflict"
    status = 409
    title = "Idempotency key used before"


class NotRepeatableError(TokenServiceError):
    """The answer to this Idempotency-Key cannot be given again; ask anew, with a new key."""

    code = "not_repeatable"
    status = 409
    title = "Not repeatable"


class NotExchangeableError(TokenServiceError):
    """The participant's token cannot be exchanged; the detail says why."""

    code = "not_exchangeable"
    status = 409
    title = "Not exchangeable"


class RequestTimeoutError(TokenServiceError):
    """The rest of the request did not come in time."""

    code = "request_timeout"
    status = 408
    title = "Request timeout"


class BodyTooLargeError(TokenServiceError):
    """The body is larger than the route takes."""

    code = "body_too_large"
    status = 413
    title = "Body too large"


class UnsupportedMediaTypeError(TokenServiceError):
    """The body is not declared as `application/json`."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


# --- ours, or AWS's -------------------------------------------------------------------------------


class NoSigningKeyError(TokenServiceError):
    """The Region has no key that may sign now."""

    code = "no_signing_key"
    status = 503
    title = "No signing key"


class StoreUnavailableError(TokenServiceError):
    """The database does not answer, or refuses to write."""

    code = "store_unavailable"
    status = 503
    title = "Store unavailable"


class RingDamagedError(StoreUnavailableError):
    """The stored key ring of a Region makes no sense; the other Regions are not affected."""

    code = "ring_damaged"
    title = "Key ring damaged"


class OverloadedError(TokenServiceError):
    """This process holds as many connections as `TOKENSVC_MAX_CONNECTIONS` allows."""

    code = "overloaded"
    status = 503
    title = "Overloaded"


class AuditUnavailableError(TokenServiceError):
    """Audit records are required (`TOKENSVC_AUDIT_REQUIRED`) and cannot be written now."""

    code = "audit_unavailable"
    status = 503
    title = "Audit unavailable"


class StoreRefusedError(TokenServiceError):
    """The database refuses a value that this program wants to store; nothing of the request was stored."""

    code = "store_refused"
    title = "Store refuses the value"


class LedgerBusyError(TokenServiceError):
    """More tokens wait to be recorded than the ledger's queue holds."""

    code = "ledger_busy"
    status = 503
    title = "Ledger busy"


class RingConflictError(TokenServiceError):
    """Another rotator changed the key ring since it was read; nothing was written."""

    code = "ring_conflict"
    status = 409
    title = "Key ring changed"


class SealError(TokenServiceError):
    """A sealed private half does not open: another master key, another row, or damage."""

    code = "seal"
    title = "Sealed key does not open"


class KmsError(TokenServiceError):
    """AWS KMS does not answer, or does not let this service use the master key."""

    code = "kms"
    status = 503
    title = "AWS KMS error"


class KeyMismatchError(TokenServiceError):
    """A private key and the public key that IVS holds under its ARN do not belong together."""

    code = "key_mismatch"
    title = "Key mismatch"


class IvsError(TokenServiceError):
    """Amazon IVS answered with an error, or did not answer. `context` holds operation and Region."""

    code = "ivs_error"
    status = 502
    title = "Amazon IVS error"


class IvsRejectedError(IvsError):
    """ValidationException: IVS refuses what we sent."""

    code = "ivs_rejected"


class IvsNotFoundError(IvsError):
    """ResourceNotFoundException."""

    code = "ivs_not_found"


class IvsAccessDeniedError(IvsError):
    """AccessDeniedException, or credentials that are missing, wrong or expired."""

    code = "ivs_access_denied"


class IvsPendingVerificationError(IvsError):
    """PendingVerification: AWS has not yet verified the account."""

    code = "ivs_pending_verification"


class IvsConflictError(IvsError):
    """ConflictException."""

    code = "ivs_conflict"


class IvsQuotaExceededError(IvsError):
    """ServiceQuotaExceededException (402), such as a fourth public key in a Region."""

    code = "ivs_quota_exceeded"


class IvsThrottledError(IvsError):
    """IVS throttles us, or our own call budget for the operation is spent."""

    code = "ivs_throttled"
    status = 503
    title = "Amazon IVS throttles"


class FallbackSaturatedError(IvsThrottledError):
    """IVS's 50 CreateParticipantToken calls a second, or our share of them, are spent."""

    code = "fallback_saturated"
    title = "Fallback saturated"


class IvsUnavailableError(IvsError):
    """IVS did not answer in time, cannot be reached, or answered 5xx."""

    code = "ivs_unavailable"
    status = 503
    title = "Amazon IVS unavailable"
