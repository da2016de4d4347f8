"""The outermost layer: what every request gets, whatever becomes of it.

One plain ASGI callable around Litestar, since each layer costs every mint: it gives the request its
id, reads the few headers that handlers need in one pass, adds the security headers to the answer, and
writes the access log's line and the request counter. The line holds the route's template and never
the path, a query string, a header or a body.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from tokensvc.errors import OverloadedError, TokenServiceError
from tokensvc.http.facts import RequestFacts, facts_of, keep_facts
from tokensvc.http.problems import PROBLEM_MEDIA_TYPE, encode_problem
from tokensvc.telemetry.metrics import Metrics

__all__ = ["Edge"]

_SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
_RETRY_SECONDS: Final = 1
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """The ASGI application that the server runs: `app` with an edge."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        perf_counter: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self.startup_error: TokenServiceError | None = None
        """Why the service did not start, where that is the operator's to mend; else None."""
        self._metrics = metrics
        self._clock = perf_counter
        # Bound once: finding out anew for each line how to log takes half as long as logging it.
        self._log = structlog.get_logger("tokensvc.http.access").bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the server's lifespan."""
        if scope["type"] == ScopeType.HTTP:
            await self._answer(scope, receive, send, self.app)
        else:
            await self._live(scope, receive, send)

    async def refuse_overload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request with 503 and close its connection: there are too many of them."""

        async def refuse(scope: Scope, _receive: Receive, send: Send) -> None:
            facts = facts_of(scope)
            facts.code = OverloadedError.code
            error = OverloadedError("Too many connections.", retry_after=_RETRY_SECONDS)
            await _send_problem(
                error,
                facts.request_id,
                send,
                (b"connection", b"close"),
                (b"retry-after", b"%d" % _RETRY_SECONDS),
            )

        await self._answer(cast("HTTPScope", scope), receive, send, refuse)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_traceback(message: Any) -> None:
            # What the operator must mend is said in one line, by whoever started the server.
            if message["type"] == "lifespan.startup.failed" and self.startup_error is not None:
                message = {**message, "message": ""}
            await send(message)

        await self.app(scope, receive, send_without_traceback)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send, app: ASGIApp) -> None:
        facts = RequestFacts(scope, self._clock())
        keep_facts(scope, facts)
        own_headers = [*_SECURITY_HEADERS, (b"x-request-id", facts.request_id.encode())]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message["headers"] = [*message["headers"], *own_headers]
            await send(message)

        bound = structlog.contextvars.bind_contextvars(request_id=facts.request_id)
        try:
            await app(scope, receive, send_with_headers)
        except Exception:
            # Litestar answers what handlers raise; this is what went wrong in answering.
            self._log.exception("answer_failed")
            facts.code = TokenServiceError.code
            if facts.status:
                raise
            error = TokenServiceError("Something unexpected went wrong.")
            await _send_problem(error, facts.request_id, send_with_headers)
        finally:
            self._note(scope, facts)
            structlog.contextvars.reset_contextvars(**bound)

    def _note(self, scope: HTTPScope, facts: RequestFacts) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = str(scope.get("path_template") or "unmatched")
        self._metrics.request_answered(method, route, facts.status, facts.code)
        self._log.info(
            "request",
            method=method,
            route=route,
            status=facts.status,
            code=facts.code or None,
            ms=round((self._clock() - facts.started) * 1000, 3),
            caller=facts.caller_id,
        )


async def _send_problem(
    error: TokenServiceError, request_id: str, send: Send, *headers: tuple[bytes, bytes]
) -> None:
    body = encode_problem(error, request_id)
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [
                (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
