"""The errors of the API: AWS's codes and status codes, and the one member of their body."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "ConflictError",
    "ExpiredTokenError",
    "IncompleteSignatureError",
    "InternalServerError",
    "InvalidSignatureError",
    "MissingAuthenticationTokenError",
    "PendingVerificationError",
    "RequestTooLargeError",
    "ResourceNotFoundError",
    "SerializationError",
    "ServiceQuotaExceededError",
    "ThrottlingError",
    "UnknownOperationError",
    "ValidationError",
]


class ApiError(Exception):
    """An answer other than 200."""

    code: ClassVar[str]
    """The value of `x-amzn-ErrorType`."""

    status: ClassVar[int]

    member: ClassVar[str] = "exceptionMessage"
    """The body's one member. Errors that come from AWS's front door, and are not in IVS's model,
    have `message`."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(ApiError):
    """A member is missing, of the wrong type, or outside the model's bounds."""

    code = "ValidationException"
    status = 400


class SerializationError(ApiError):
    """The body is not the JSON object that it should be; common to all AWS services."""

    code = "SerializationException"
    status = 400
    member = "message"


class ServiceQuotaExceededError(ApiError):
    """The account has as many of these as it may have."""

    code = "ServiceQuotaExceededException"
    status = 402


class AccessDeniedError(ApiError):
    """The caller may not do this."""

    code = "AccessDeniedException"
    status = 403


class PendingVerificationError(ApiError):
    """AWS has not verified the account."""

    code = "PendingVerification"
    status = 403


class MissingAuthenticationTokenError(ApiError):
    """The request is not signed; common to all AWS services."""

    code = "MissingAuthenticationTokenException"
    status = 403
    member = "message"


class ExpiredTokenError(ApiError):
    """The session token that signed the request has expired; common to all AWS services."""

    code = "ExpiredTokenException"
    status = 403
    member = "message"


class IncompleteSignatureError(ApiError):
    """The Authorization header is malformed; common to all AWS services."""

    code = "IncompleteSignatureException"
    status = 403
    member = "message"


class InvalidSignatureError(ApiError):
    """The signature's scope is not this service's; common to all AWS services."""

    code = "InvalidSignatureException"
    status = 403
    member = "message"


class ResourceNotFoundError(ApiError):
    """There is no such thing in this Region."""

    code = "ResourceNotFoundException"
    status = 404


class UnknownOperationError(ApiError):
    """No operation has this path."""

    code = "UnknownOperationException"
    status = 404
    member = "message"


class ConflictError(ApiError):
    """The request does not fit the state of what it is about."""

    code = "ConflictException"
    status = 409


class RequestTooLargeError(ApiError):
    """The body is longer than is read; common to all AWS services."""

    code = "RequestEntityTooLargeException"
    status = 413
    member = "message"


class ThrottlingError(ApiError):
    """More calls a second than the operation's quota; not in IVS's model, common to AWS services."""

    code = "ThrottlingException"
    status = 429
    member = "message"


class InternalServerError(ApiError):
    """IVS failed."""

    code = "InternalServerException"
    status = 500
