"""The outermost layer: what every request gets, whatever becomes of it.

One plain ASGI callable around Litestar, since each layer costs every mint: it gives the request its
id, reads the few headers that handlers need in one pass, adds the security headers to the answer, and
writes the access log's line and the request counter. The line holds the route's template and never
the path, a query string, a header or a body.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, cast

import msgspec
import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tokensvc.errors import OverloadedError, TokenServiceError
from tokensvc.http.answers import Answer
from tokensvc.http.facts import RequestFacts, facts_of, keep_facts, read_facts
from tokensvc.http.problems import PROBLEM_MEDIA_TYPE, encode_problem, problem_answer
from tokensvc.http.request_audit import RequestAudit
from tokensvc.http.short_way import ShortWay
from tokensvc.telemetry.access_log import AccessLog
from tokensvc.telemetry.metrics import Metrics

__all__ = ["Edge"]

_SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    # Nothing here is to be shown in a browser, embedded in a page, or read by another origin's.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_SECURITY_LINES: Final = b"".join(b"%b: %b\r\n" % header for header in _SECURITY_HEADERS)
_RETRY_SECONDS: Final = 1
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Taker(Protocol):
    """Who sends answers: the connection that the request came on."""

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task do what is left to do for a request."""
        ...

    def take(self, answer: Answer, head: bytes) -> None:
        """Send an answer with the lines of its headers."""
        ...

    def give_up(self) -> None:
        """Close, as there is no answer."""
        ...


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
        self.short_ways: Mapping[bytes, ShortWay] = {}
        """By URL, for requests that need not go through Litestar's routing; none before it serves."""
        self.audit: RequestAudit | None = None
        """What requests are told to when they are answered; None before anything is served."""
        self.reload: Callable[[], None] = _nothing_to_reload
        """Reads anew what an operator may change while the service runs; for a SIGHUP."""
        self.is_draining = False
        """Whether the server is about to end: every answer is then the last one of its connection."""
        self._metrics = metrics
        self._clock = perf_counter
        self._access = AccessLog()
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._openings: dict[int, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the server's lifespan."""
        if scope["type"] == ScopeType.HTTP:
            await self._answer(scope, receive, send, self.app)
        else:
            await self._live(scope, receive, send)

    async def refuse_overload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request with 503 and close its connection: there are too many of them."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            facts = facts_of(scope)
            facts.code = OverloadedError.code
            error = OverloadedError("Too many connections.", retry_after=_RETRY_SECONDS)
            fields = (("connection", "close"), ("retry-after", str(_RETRY_SECONDS)))
            await _problem(error, facts.request_id, *fields)(scope, receive, send)

        await self._answer(cast("HTTPScope", scope), receive, send, refuse)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_traceback(message: Any) -> None:
            # What the operator must mend is said in one line, by whoever started the server.
            if message["type"] == "lifespan.startup.failed" and self.startup_error is not None:
                message = {**message, "message": ""}
            await send(message)

        await self.app(scope, receive, send_without_traceback)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send, app: ASGIApp) -> None:
        facts = read_facts(scope["headers"], self._clock())
        keep_facts(scope, facts)
        own_headers = _own_headers(facts)

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
            answer = self._failed(facts)
            if facts.status:
                raise
            await answer(scope, receive, send_with_headers)
        finally:
            route = str(scope.get("path_template") or "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._note(method, route, facts)
            structlog.contextvars.reset_contextvars(**bound)

    def begin(
        self, short: ShortWay, sent: list[tuple[bytes, bytes]], body: bytes, taker: Taker
    ) -> None:
        """Begin to answer a whole request by its handler, without the way there.

        The handler is the one that Litestar would call, with the same facts at hand, and what it
        returns or raises becomes the same answer. `sent` are the headers, names in lower case. The
        answer is for `taker`, who may have it already when this returns.
        """
        asked = _Asked(self, short, read_facts(sent, self._clock(), body), taker)
        if short.begin is None:
            asked.handle()
        else:
            short.begin(asked)

    def finish(
        self, short: ShortWay, facts: RequestFacts, outcome: Answer | Exception
    ) -> tuple[Answer, bytes]:
        """Return the answer that an outcome makes, and its head; the access log gets its line.

        The head is the lines of all headers, without the status line and without an empty line.
        """
        try:
            if isinstance(outcome, Exception):
                with structlog.contextvars.bound_contextvars(request_id=facts.request_id):
                    answer = self._problem(short.request(facts), outcome, facts)
            else:
                answer = outcome
            facts.status = answer.status_code
            head = b"%b%bx-request-id: %b\r\n" % (
                answer.head_to_send(),
                _SECURITY_LINES,
                facts.request_id.encode(),
            )
            return answer, head
        finally:
            self._note(short.method, short.path, facts, soon=True)

    def failed(self, facts: RequestFacts) -> None:
        """Log what kept an answer from being sent; for an `except`."""
        with structlog.contextvars.bound_contextvars(request_id=facts.request_id):
            self._access.exception("answer_failed")

    def opening(self, status: int, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return how an answer begins: its status line, and the headers that the server gives to all.

        Those are another list whenever they change, which they do every second, with the date.
        """
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._openings.clear()
        found = self._openings.get(status)
        if found is None:
            lines = [b"%b: %b\r\n" % header for header in default_headers]
            found = self._openings[status] = STATUS_LINE[status] + b"".join(lines)
        return found

    def _problem(
        self, request: Request[Any, Any, Any], raised: Exception, facts: RequestFacts
    ) -> Answer:
        try:
            return problem_answer(request, raised)
        except Exception:  # noqa: BLE001 - logged, and answered
            return self._failed(facts)

    def _failed(self, facts: RequestFacts) -> Answer:
        self.failed(facts)
        facts.code = TokenServiceError.code
        return _problem(TokenServiceError("Something unexpected went wrong."), facts.request_id)

    def _note(self, method: str, route: str, facts: RequestFacts, *, soon: bool = False) -> None:
        self._metrics.request_answered(method, route, facts.status, facts.code)
        if self.audit is not None:
            self.audit.note(method, route, facts)
        self._access.note(
            soon=soon,
            method=method,
            route=route,
            status=facts.status,
            code=facts.code or None,
            ms=round((self._clock() - facts.started) * 1000, 3),
            caller=facts.caller_id,
            request_id=facts.request_id,
        )


class _Asked(msgspec.Struct, eq=False):
    """One request on the short way."""

    edge: Edge
    short: ShortWay
    facts: RequestFacts
    taker: Taker

    def handle(self) -> None:
        """Have it answered by the route's handler, in a task."""
        self.wait_for(self.short.handler(self.short.request(self.facts)))

    def wait_for(self, answer: Awaitable[Answer]) -> None:
        """Have its answer awaited in a task."""
        self.taker.run(self._wait_for(answer))

    async def _wait_for(self, answer: Awaitable[Answer]) -> None:
        structlog.contextvars.bind_contextvars(request_id=self.facts.request_id)
        try:
            outcome: Answer | Exception = await answer
        except Exception as raised:  # noqa: BLE001 - every one of them has an answer
            outcome = raised
        self.take(outcome)

    def take(self, outcome: Answer | Exception) -> None:
        """Send what became of it; raises nothing."""
        try:
            answer, head = self.edge.finish(self.short, self.facts, outcome)
            self.taker.take(answer, head)
        except Exception:  # noqa: BLE001 - logged; whoever calls this has others to tell
            self.edge.failed(self.facts)
            self.taker.give_up()


def _nothing_to_reload() -> None:
    """Do nothing: before anything is served, all has just been read."""


def _own_headers(facts: RequestFacts) -> list[tuple[bytes, bytes]]:
    return [*_SECURITY_HEADERS, (b"x-request-id", facts.request_id.encode())]


def _problem(error: TokenServiceError, request_id: str, *fields: tuple[str, str]) -> Answer:
    return Answer(
        encode_problem(error, request_id),
        error.status,
        fields=fields,
        media=PROBLEM_MEDIA_TYPE.encode(),
    )
