"""OPTIONS, for every path: which methods it takes (RFC 9110 section 9.3.7).

Litestar answers for the first handler of a path alone. Nothing here is meant for browsers, so there is
no CORS header, and no page of another origin can read an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from litestar import HttpMethod, Request, route
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from tokensvc.http.problems import allowed_methods

__all__ = ["options_of"]


def options_of(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Return a handler of OPTIONS for every path of `handlers`; register it before them."""
    paths = sorted({path for handler in handlers for path in handler.paths})
    return [
        route(path, http_method=HttpMethod.OPTIONS, status_code=200)(_options) for path in paths
    ]


async def _options(request: Request[Any, Any, Any]) -> ASGIResponse:
    allow = ", ".join(allowed_methods(request))
    return ASGIResponse(status_code=204, headers={"allow": allow}, media_type=None)
