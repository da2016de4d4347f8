"""The errors of the API: AWS's codes and status codes, and the one member of their body."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "ConflictError",
    "InternalServerError",
    "InvalidSignatureError",
    "MissingAuthenticationTokenError",
    "PendingVerificationError",
    "ResourceNotFoundError",
    "ServiceQuotaExceededError",
    "ThrottlingError",
    "UnknownOperationError",
    "ValidationError",
]


class ApiError(Exception):
    """An answer other than 200; `message` becomes `exceptionMessage`."""

    code: ClassVar[str]
    """The value of `x-amzn-ErrorType`."""

    status: ClassVar[int]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(ApiError):
    """A member is missing, of the wrong type, or outside the model's bounds."""

    code = "ValidationException"
    status = 400


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


class InvalidSignatureError(ApiError):
    """The signature's scope is not this service's; common to all AWS services."""

    code = "InvalidSignatureException"
    status = 403


class ResourceNotFoundError(ApiError):
    """There is no such thing in this Region."""

    code = "ResourceNotFoundException"
    status = 404


class UnknownOperationError(ApiError):
    """No operation has this path."""

    code = "UnknownOperationException"
    status = 404


class ConflictError(ApiError):
    """The request does not fit the state of what it is about."""

    code = "ConflictException"
    status = 409


class ThrottlingError(ApiError):
    """More calls a second than the operation's quota; not in IVS's model, common to AWS services."""

    code = "ThrottlingException"
    status = 429


class InternalServerError(ApiError):
    """IVS failed."""

    code = "InternalServerException"
    status = 500
