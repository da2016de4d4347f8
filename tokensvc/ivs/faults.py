"""From botocore's errors to ours.

What decides is the error code of the answer (`x-amzn-ErrorType`), then, for a code that is not known
here, the HTTP status. IVS models neither throttling nor expired credentials for any operation, so
the codes common to all AWS services are known as well. What IVS says in words goes to `context`,
for the log: its text may name principals and policies, and is never shown to callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore import exceptions

from tokensvc.errors import (
    IvsAccessDeniedError,
    IvsConflictError,
    IvsError,
    IvsNotFoundError,
    IvsPendingVerificationError,
    IvsQuotaExceededError,
    IvsRejectedError,
    IvsThrottledError,
    IvsUnavailableError,
)

__all__ = ["translate"]

_RETRY_AFTER_THROTTLE_SECONDS = 1.0
_RETRY_AFTER_OUTAGE_SECONDS = 2.0
_MAX_RETRY_AFTER_SECONDS = 60.0
_MAX_MESSAGE_CHARS = 500

_DETAILS: Mapping[type[IvsError], str] = {
    IvsAccessDeniedError: "Amazon IVS does not let this service make the call.",
    IvsConflictError: "Amazon IVS is changing the same thing already.",
    IvsError: "Amazon IVS gave an answer that is not understood.",
    IvsNotFoundError: "Amazon IVS knows no such thing.",
    IvsPendingVerificationError: "AWS has not yet verified this account for Amazon IVS.",
    IvsQuotaExceededError: "A quota of Amazon IVS is used up.",
    IvsRejectedError: "Amazon IVS refuses what was asked of it.",
    IvsThrottledError: "Amazon IVS takes no more calls at the moment.",
    IvsUnavailableError: "Amazon IVS does not answer.",
}

_DENIED_CODES = (
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_THROTTLED_CODES = (
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
)
_UNAVAILABLE_CODES = (
    "InternalFailure",
    "InternalServerException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "ServiceUnavailableException",
)
_BY_CODE: Mapping[str, type[IvsError]] = {
    "ConflictException": IvsConflictError,
    "PendingVerification": IvsPendingVerificationError,
    "ResourceNotFoundException": IvsNotFoundError,
    "ServiceQuotaExceededException": IvsQuotaExceededError,
    "ValidationException": IvsRejectedError,
    **dict.fromkeys(_DENIED_CODES, IvsAccessDeniedError),
    **dict.fromkeys(_THROTTLED_CODES, IvsThrottledError),
    **dict.fromkeys(_UNAVAILABLE_CODES, IvsUnavailableError),
}

# No 404 here: one without its code is a wrong path or a proxy, and must not be taken for "this stage
# does not exist". Nor a 400, of which a kick would never be tried again.
_BY_STATUS: Mapping[int, type[IvsError]] = {
    401: IvsAccessDeniedError,
    402: IvsQuotaExceededError,
    403: IvsAccessDeniedError,
    408: IvsUnavailableError,
    409: IvsConflictError,
    429: IvsThrottledError,
}

_CREDENTIAL_FAULTS = (
    exceptions.CredentialRetrievalError,
    exceptions.LoginError,
    exceptions.MetadataRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.RefreshWithMFAUnsupportedError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownCredentialError,
)
_CONNECTION_FAULTS = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
)


def translate(error: Exception, *, operation: str, region: str) -> IvsError:
    """Return our error for anything that a boto3 call, or the making of its client, raised.

    `context` gets `operation`, `region`, `error_type` and, where IVS answered, `aws_code`,
    `http_status`, `request_id`, `attempts` and `ivs_message` (at most 500 characters). `retry_after`
    is set, in seconds, for throttling and outages.
    """
    context: dict[str, Any] = {
        "operation": operation,
        "region": region,
        "error_type": type(error).__name__,
    }
    retry_after: float | None = None
    if isinstance(error, exceptions.ClientError):
        kind, asked_to_wait = _read_answer(error, context)
        retry_after = asked_to_wait
    else:
        kind = _kind_without_answer(error)
        context["reason"] = str(error)[:_MAX_MESSAGE_CHARS]
    if kind is IvsThrottledError:
        retry_after = retry_after or _RETRY_AFTER_THROTTLE_SECONDS
    elif kind is IvsUnavailableError:
        retry_after = retry_after or _RETRY_AFTER_OUTAGE_SECONDS
    else:
        retry_after = None
    return kind(_DETAILS[kind], retry_after=retry_after, **context)


def _kind_without_answer(error: Exception) -> type[IvsError]:
    if isinstance(error, _CREDENTIAL_FAULTS):
        return IvsAccessDeniedError
    if isinstance(error, _CONNECTION_FAULTS):
        return IvsUnavailableError
    if isinstance(error, exceptions.ParamValidationError):
        return IvsRejectedError
    return IvsError


def _read_answer(
    error: exceptions.ClientError, context: dict[str, Any]
) -> tuple[type[IvsError], float | None]:
    answer: Mapping[str, object] = {**error.response}
    stated = _mapping(answer.get("Error"))
    metadata = _mapping(answer.get("ResponseMetadata"))
    code, status = str(stated.get("Code", "")), metadata.get("HTTPStatusCode")
    # botocore fills Error.Message only from a member called `message`. IVS calls it
    # `exceptionMessage`, which botocore leaves beside `Error`, and only for codes of the model.
    message = stated.get("Message") or answer.get("exceptionMessage") or ""
    context |= {
        "aws_code": code,
        "http_status": status,
        "request_id": metadata.get("RequestId"),
        "attempts": _whole(metadata.get("RetryAttempts"), 0) + 1,
        "ivs_message": str(message)[:_MAX_MESSAGE_CHARS],
    }
    kind = _BY_CODE.get(code) or _kind_by_status(_whole(status, 0))
    asked_to_wait = _mapping(metadata.get("HTTPHeaders")).get("retry-after")
    return kind, _seconds(asked_to_wait)


def _kind_by_status(status: int) -> type[IvsError]:
    if status >= 500:
        return IvsUnavailableError
    return _BY_STATUS.get(status, IvsError)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _seconds(value: object) -> float | None:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        return None
    return min(float(value), _MAX_RETRY_AFTER_SECONDS)
