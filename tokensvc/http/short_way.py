"""The short way of a route: from its bytes to its handler, past ASGI and Litestar's routing.

Mints and batches are asked for far more often than everything else, and most of what a mint cost beyond
its signature was the way to its handler. A request that has come whole, and asks for nothing special of the
connection, may take this way (`protocol.py` decides). What answers is the handler that Litestar has
registered, with the same checks in it; what it raises becomes a problem in the same place. The way
through Litestar stays: for all other requests, and for the same answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from litestar import Litestar, Request
from litestar.types import HTTPScope

from tokensvc.http.answers import Answer
from tokensvc.http.direct_mint import Asked
from tokensvc.http.facts import FACTS_KEY, RequestFacts
from tokensvc.http.service import SERVICE_KEY, Service

__all__ = ["ShortWay", "short_ways"]

Handler = Callable[[Request[Any, Any, Any]], Awaitable[Answer]]
Begin = Callable[[Asked], None]
"""What has a request answered without a task, where it can; see `DirectMint.begin`."""


class ShortWay:
    """The handler of one route, ready to be called; `path` is the route's template and has no parameter."""

    __slots__ = ("_scope", "begin", "handler", "method", "path", "url", "verb")

    def __init__(
        self,
        app: Litestar,
        service: Service,
        method: str,
        path: str,
        handler: Handler,
        begin: Begin | None = None,
    ) -> None:
        """Take `handler` as `app` has it registered under `method` and `path`.

        `begin` may answer in its place.
        """
        self.method: Final = method
        self.path: Final = path
        self.verb: Final = method.encode("ascii")
        self.url: Final = path.encode("ascii")
        self.handler: Final = handler
        self.begin: Final = begin
        # All of a request's scope that is the same for each.
        self._scope: Final = {
            "type": "http",
            "method": method,
            "path": path,
            "litestar_app": app,
            SERVICE_KEY: service,
        }

    def request(self, facts: RequestFacts) -> Request[Any, Any, Any]:
        """Return the request that the handler is to answer; `facts` have its body."""
        scope: Any = {**self._scope, FACTS_KEY: facts}
        return _HandlersRequest(scope)


def short_ways(*ways: ShortWay) -> Mapping[bytes, ShortWay]:
    """Return the short ways by URL."""
    return {way.url: way for way in ways}


class _HandlersRequest(Request[Any, Any, Any]):
    """A request as far as our handlers look at it: its scope, its facts and the application."""

    __slots__ = ()

    def __init__(self, scope: HTTPScope) -> None:
        self.scope = scope
