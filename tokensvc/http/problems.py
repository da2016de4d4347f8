"""Every answer that is not what was asked for: RFC 9457 problem details.

`type` is `urn:tokensvc:problem:<code>`, and `code` is stable (`tokensvc.errors`). Validation problems
name every bad field in `errors`. What an error keeps for the log (`context`, its cause, a traceback)
never gets in here.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from tokensvc.errors import (
    BannedError,
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RateLimitedError,
    RequestTimeoutError,
    TokenServiceError,
    UnauthenticatedError,
)
from tokensvc.http.answers import Answer
from tokensvc.http.facts import facts_of

__all__ = [
    "PROBLEM_MEDIA_TYPE",
    "Problem",
    "ProblemField",
    "allowed_methods",
    "answer_exception",
    "encode_problem",
    "problem_answer",
    "problem_of",
]

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

_SERVER_FAULT: Final = 500
_PASSING: Final = (429, 503)
_RETRY_SECONDS: Final = 5.0
"""Where the error itself does not know when asking again may help."""

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class ProblemField(msgspec.Struct, omit_defaults=True):
    """One bad field: its path as sent, a stable code, and the limit that was crossed."""

    field: str
    code: str
    detail: str
    limit: int | str | None = None


class Problem(msgspec.Struct, omit_defaults=True, rename="camel"):
    """RFC 9457 problem details; all from `code` on are extension members.

    `banId` and `bannedUntil` (null: for good) are those of a problem `banned` alone.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemField] = []
    ban_id: str | msgspec.UnsetType = msgspec.UNSET
    banned_until: datetime | msgspec.UnsetType | None = msgspec.UNSET


def problem_of(
    error: TokenServiceError, request_id: str, *, within: str = "", status: int | None = None
) -> Problem:
    """Return the public half of `error`.

    `within` is the path of the item that its fields are of; `status` stands in for the error's own.
    """
    problem = Problem(
        type=f"urn:tokensvc:problem:{error.code}",
        title=error.title,
        status=status or error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        errors=[
            ProblemField(_path(within, field.field), field.code, field.detail, field.limit)
            for field in error.errors
        ],
    )
    if isinstance(error, BannedError) and error.ban_id is not None:
        problem.ban_id = error.ban_id
        problem.banned_until = None
        if error.until is not None:
            problem.banned_until = datetime.fromtimestamp(error.until, UTC)
    return problem


def _path(within: str, field: str) -> str:
    return f"{within}.{field}" if within and field else within or field


def encode_problem(
    error: TokenServiceError, request_id: str, *, status: int | None = None
) -> bytes:
    """Return the body of a problem response; `status` stands in for the error's own."""
    return _encode(problem_of(error, request_id, status=status))


def answer_exception(request: Request[Any, Any, Any], raised: Exception) -> Response[bytes]:
    """Turn whatever a handler or the router raised into a problem response; Litestar calls this."""
    answer = problem_answer(request, raised)
    return Response(
        answer.body,
        status_code=answer.status_code,
        media_type=PROBLEM_MEDIA_TYPE,
        headers=dict(answer.fields),
    )


def problem_answer(request: Request[Any, Any, Any], raised: Exception) -> Answer:
    """Return the answer to a request whose handler raised; it is logged where it is our fault."""
    facts = facts_of(request.scope)
    error = _as_ours(raised)
    facts.code = error.code
    if error is not raised and error.status >= _SERVER_FAULT:
        _log.error("unexpected_error", exc_info=raised)
    elif error.status >= _SERVER_FAULT:
        _log.warning("request_failed", code=error.code, detail=error.detail, context=error.context)
    return Answer(
        encode_problem(error, facts.request_id),
        error.status,
        fields=_headers(error, request).items(),
        media=PROBLEM_MEDIA_TYPE.encode(),
    )


def _as_ours(raised: Exception) -> TokenServiceError:
    if isinstance(raised, TokenServiceError):
        return raised
    if isinstance(raised, MethodNotAllowedException):
        return MethodNotAllowedError("This route does not take this method.")
    if isinstance(raised, NotFoundException):
        return NotFoundError("There is nothing at this path.")
    if isinstance(raised, HTTPException) and raised.status_code < _SERVER_FAULT:
        return InvalidRequestError(raised.detail)
    return TokenServiceError("Something unexpected went wrong; the log has it by the request id.")


def _headers(error: TokenServiceError, request: Request[Any, Any, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    retry_after = error.retry_after
    if retry_after is None and error.status in _PASSING:
        retry_after = _RETRY_SECONDS
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if isinstance(error, RateLimitedError):
        headers |= error.headers
    elif isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = 'Bearer realm="tokensvc"'
    elif isinstance(error, MethodNotAllowedError):
        headers["Allow"] = ", ".join(allowed_methods(request))
    elif isinstance(error, BodyTooLargeError | RequestTimeoutError):
        # What was not read is still on the wire; only a new connection is clean.
        headers["Connection"] = "close"
    return headers


def allowed_methods(request: Request[Any, Any, Any]) -> list[str]:
    """Return the methods of the route at the request's path, sorted; none where there is no route."""
    path = [part for part in request.scope["path"].split("/") if part]
    for route in request.app.routes:
        parts = route.path_components
        if len(parts) == len(path) and all(
            not isinstance(part, str) or part == asked
            for part, asked in zip(parts, path, strict=True)
        ):
            return sorted(route.methods)
    return []
