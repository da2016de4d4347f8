"""The OpenAPI document at `/schema`: what a route says of itself, beside the route.

A route carries a `RouteDoc` in its `opt`; the document is made from all routes once, when the
application is. Schemas come from `structs.py` through msgspec, which also encodes the answers, so the
document cannot say other than the code does. (Litestar's own generator takes requests from handlers'
parameters; ours read their bodies themselves.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.routes import HTTPRoute

from tokensvc.errors import (
    BodyTooLargeError,
    ForbiddenError,
    IdempotencyConflictError,
    IdentityProviderError,
    InvalidRequestError,
    IvsAccessDeniedError,
    IvsError,
    IvsPendingVerificationError,
    IvsQuotaExceededError,
    IvsRejectedError,
    IvsThrottledError,
    IvsUnavailableError,
    MalformedJsonError,
    NotRepeatableError,
    OverloadedError,
    PolicyDeniedError,
    RequestTimeoutError,
    StoreUnavailableError,
    TokenServiceError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from tokensvc.http.problems import PROBLEM_MEDIA_TYPE, Problem

__all__ = [
    "IVS_PROBLEMS",
    "STORING_PROBLEMS",
    "RouteDoc",
    "documented",
    "openapi_document",
    "publish",
    "schema",
]

IVS_PROBLEMS: Final = (
    IvsError,
    IvsRejectedError,
    IvsAccessDeniedError,
    IvsPendingVerificationError,
    IvsQuotaExceededError,
    IvsThrottledError,
    IvsUnavailableError,
)
"""What IVS may answer to a request that needs it."""

STORING_PROBLEMS: Final = (
    PolicyDeniedError,
    IdempotencyConflictError,
    NotRepeatableError,
    StoreUnavailableError,
)
"""What a request may meet that is stored and may be repeated."""

_KEY: Final = "document"
_SCHEME: Final = "apiKey"
_BODY_PROBLEMS: Final[tuple[type[TokenServiceError], ...]] = (
    InvalidRequestError,
    MalformedJsonError,
    RequestTimeoutError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
)
_REQUEST_ID: Final = {
    "description": "Finds the request in the log; the one that was sent, where it was fit for it.",
    "schema": {"type": "string"},
}


@dataclass(frozen=True, slots=True)
class RouteDoc:
    """What `/schema` says of one route; None is "has none"."""

    operation_id: str
    answer: type | None
    also: Sequence[type] = ()
    """Types that the answer refers to by hand."""
    scope: str | None = None
    request: type | None = None
    request_required: bool = True
    query: Sequence[Mapping[str, object]] = ()
    """Query parameters, as OpenAPI describes them."""
    media_type: str = "application/json"
    request_examples: Mapping[str, object] = field(default_factory=dict)
    answer_examples: Mapping[str, object] = field(default_factory=dict)
    problems: Sequence[type[TokenServiceError]] = ()
    statuses: Mapping[int, str] = field(default_factory=dict)
    """Statuses beside the usual one, with the same answer, and what they mean."""


def documented(doc: RouteDoc) -> dict[str, RouteDoc]:
    """Return the `opt` of a route that is in the document."""
    return {_KEY: doc}


@get("/schema", summary="Show this document")
async def schema(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show the OpenAPI document of the routes that are served."""
    return ASGIResponse(body=request.app.state.openapi_document, media_type="application/json")


def publish(app: Litestar, version: str) -> None:
    """Make the document of `app`, once it has all its routes, and put it where `schema` finds it."""
    app.state.openapi_document = msgspec.json.encode(openapi_document(app.routes, version=version))


def openapi_document(
    routes: Iterable[object], *, version: str, title: str = "tokensvc"
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of those of `routes` that carry a RouteDoc."""
    found = [
        (route.path_format, method.lower(), handler, handler.opt[_KEY])
        for route in routes
        if isinstance(route, HTTPRoute)
        for method, (handler, _) in sorted(route.route_handler_map.items())
        if _KEY in handler.opt
    ]
    types = {Problem} | {
        kind
        for *_, doc in found
        for kind in (doc.request, doc.answer, *doc.also)
        if kind is not None
    }
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for path, method, handler, doc in sorted(found, key=lambda entry: (entry[0], entry[1])):
        paths.setdefault(path, {})[method] = _operation(handler, doc, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": (
                "Issues Amazon IVS Real-Time participant tokens. Every answer that is not what was"
                f" asked for is RFC 9457 problem details (`{PROBLEM_MEDIA_TYPE}`)."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                _SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: `tsk_...`, made by `tokensvc callers add`.",
                }
            },
        },
    }


def _operation(handler: HTTPRouteHandler, doc: RouteDoc, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": doc.operation_id,
        "summary": handler.summary or doc.operation_id,
        "description": " ".join((handler.fn.__doc__ or "").split()),
        "security": [] if doc.scope is None else [{_SCHEME: []}],
        "responses": _responses(handler, doc),
    }
    if doc.scope is not None:
        operation["description"] += f" Needs the scope `{doc.scope}`."
    parameters: list[dict[str, object]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    parameters += [{"in": "query", **parameter} for parameter in doc.query]
    if parameters:
        operation["parameters"] = parameters
    if doc.request is not None:
        operation["requestBody"] = {
            "required": doc.request_required,
            "content": {"application/json": _content(doc.request, doc.request_examples)},
        }
    return operation


def _responses(handler: HTTPRouteHandler, doc: RouteDoc) -> dict[str, Any]:
    content = {"schema": {"type": "string"}}
    if doc.answer is not None:
        content = _content(doc.answer, doc.answer_examples)
    usual = handler.status_code
    statuses = {usual: HTTPStatus(usual).phrase, **doc.statuses}
    responses: dict[str, Any] = {
        str(status): {
            "description": meaning,
            "headers": {"X-Request-Id": _REQUEST_ID},
            "content": {doc.media_type: content},
        }
        for status, meaning in statuses.items()
    }
    problems: list[type[TokenServiceError]] = [*doc.problems, OverloadedError, TokenServiceError]
    if doc.scope is not None:
        problems = [UnauthenticatedError, ForbiddenError, IdentityProviderError, *problems]
    if doc.request is not None:
        problems = [*_BODY_PROBLEMS, *problems]
    by_status: dict[int, list[type[TokenServiceError]]] = {}
    for problem in dict.fromkeys(problems):
        by_status.setdefault(problem.status, []).append(problem)
    for status, kinds in sorted(by_status.items()):
        responses[str(status)] = _problem_response(status, kinds)
    return responses


def _problem_response(status: int, kinds: list[type[TokenServiceError]]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": "; ".join(f"{kind.title} (`{kind.code}`)" for kind in kinds),
        "headers": {"X-Request-Id": _REQUEST_ID},
        "content": {
            PROBLEM_MEDIA_TYPE: _content(
                Problem,
                {
                    kind.code: {
                        "type": f"urn:tokensvc:problem:{kind.code}",
                        "title": kind.title,
                        "status": status,
                        "detail": (kind.__doc__ or kind.title).splitlines()[0],
                        "code": kind.code,
                        "requestId": "4f1c9a0b7d2e",
                    }
                    for kind in kinds
                },
            )
        },
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {
            "X-Request-Id": _REQUEST_ID,
            "Retry-After": {
                "description": "Seconds after which the same request may succeed.",
                "schema": {"type": "integer"},
            },
        }
    return response


def _content(kind: type, examples: Mapping[str, object]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return content
