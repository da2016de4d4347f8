"""uvicorn's httptools protocol with the bounds that it leaves out.

The head of a request is bounded in bytes and in time, so that neither a head without end nor one that never
ends costs more than a connection for some seconds. So is what is left of a body once the request was
answered, and how long an answer waits for a client that does not take it. A connection too many, and a
request that is not HTTP, are answered with problem details as everything else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tokensvc.errors import InvalidRequestError, TokenServiceError
from tokensvc.http.answers import Answer
from tokensvc.http.cycles import CycleTransport, ShortCycle
from tokensvc.http.edge import Edge
from tokensvc.http.heads import BadHeadError, check_head, refusal, without_upgrade
from tokensvc.http.short_way import ShortWay

__all__ = [
    "HEAD_SECONDS",
    "LINGER_SECONDS",
    "MAX_HEAD_BYTES",
    "REST_SECONDS",
    "TAKE_SECONDS",
    "BoundedHttpProtocol",
]

MAX_HEAD_BYTES: Final = 16_384
"""Request line and headers of one request; a right one has a few hundred bytes."""

HEAD_SECONDS: Final = 10.0
"""From the first byte of a head, or from a new connection's start, to the head's end."""

LINGER_SECONDS: Final = 5.0
"""From a last answer, while its request is still coming, to the connection's end."""

REST_SECONDS: Final = 15.0
"""From an answer that came before the request's body was all there, to the body's end."""

TAKE_SECONDS: Final = 30.0
"""How long more of an answer than the kernel keeps may wait for the client to take it."""

_COPIED_BYTES: Final = 65_536
"""Bodies up to here are copied behind their heads, into one write; of megabytes that takes milliseconds."""

_NOT_HTTP: Final = "This is not an HTTP request."


_log = structlog.get_logger(__name__)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection of a server whose application is an `Edge`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._edge: Edge = config.loaded_app
        self._max_connections = config.limit_concurrency
        # Counted here instead, since uvicorn would answer in plain text and unlogged.
        self.limit_concurrency = None
        self._head_bytes = 0
        self._in_head = True
        self._head_began = False
        """Whether the head began with the bytes that are being read."""
        self._upgrades = False
        self._was_answered_early = False
        """Whether a request was answered before its body's end."""
        self._heard = False
        """Whether the bytes that are being read had a part of a body in them."""
        self._unheard_bytes = 0
        self._lingers = False
        """Whether the last answer was sent, and what still comes is thrown away."""
        self._refusal: bytes | None = None
        """What is sent when the answers before it have been; nothing more is read."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._rest_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._fault = _NOT_HTTP
        self._version = ""
        self._is_chunked = False
        self._short: ShortWay | None = None
        self._short_cycle = ShortCycle()
        self._chunks: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_is_over()
        self._body_is_over()
        for timer in (self._idle_timer, self._take_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what was sent."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Stop waiting: it was taken, but for the rest of a connection that is being closed."""
        super().resume_writing()
        if self._take_timer is not None and not self.transport.is_closing():
            self._take_timer.cancel()
            self._take_timer = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse a head that grows too long, or begin to wait for its end."""
        if self._reads_no_more():
            return
        self._idle_since = None
        self._head_began = self._heard = False
        self._feed(data)
        if self._short is not None:
            self._go_the_long_way()
        if self.transport.is_closing() or self._reads_no_more():
            return
        if not self._in_head:
            self._unheard_bytes = (
                0 if self._heard or not self._in_body else self._unheard_bytes + len(data)
            )
            if self._unheard_bytes > MAX_HEAD_BYTES:
                # Of a chunk's extension, or of a trailer: the parser keeps them until they end.
                self._refuse(
                    HTTPStatus.BAD_REQUEST,
                    InvalidRequestError(f"Between two chunks there may be {MAX_HEAD_BYTES} bytes."),
                )
                return
            self._idle_again()
            return
        if self._head_began:
            # Others may stand before it in what was read.
            self._head_bytes = len(data) - data.rfind(self.url) if self.url else 0
        else:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                InvalidRequestError(f"The head of a request may have {MAX_HEAD_BYTES} bytes."),
            )
        elif self._head_timer is None:
            self._watch_head()

    def _reads_no_more(self) -> bool:
        return self._refusal is not None or self._lingers

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._upgrades:
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
            else:
                return

    def _without_upgrade(self) -> bytes:
        self._upgrades = False
        head = without_upgrade(self.parser.get_method(), self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        return head

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = self._head_began = True
        self._was_answered_early = False
        self._head_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; what it means is looked at when all are there."""
        if not self._in_head:
            # They would have no bound, and be read as headers by some and not by others.
            self._fault = "A body has no trailers here (RFC 9110, section 6.5)."
            raise BadHeadError
        self.headers.append((name.lower(), value))

    def _begin_cycle(self) -> None:
        # What the short way has no use for is made when it is known that it is not taken.
        url, headers, waits = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url = url
        self.headers[:] = headers
        self.expect_100_continue = waits
        super().on_headers_complete()
        self.cycle.transport = CycleTransport(self.transport, self._end)  # type: ignore[assignment]

    def _end(self) -> None:
        if self._in_body:
            self._linger()
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """End a head, and choose who answers: the application, or its refusal."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_is_over()
        self._check_head()
        self._in_body = True
        self._unheard_bytes = 0
        if (
            self.parser.should_upgrade()
            and self._version == "1.1"
            and self.parser.get_method() != b"CONNECT"
        ):
            self._upgrades = True
            return
        crowded = self._max_connections is not None and (
            len(self.connections) > self._max_connections
            or len(self.tasks) >= self._max_connections
        )
        self.app = self._edge.refuse_overload if crowded else self._edge
        self._short = None if crowded else self._short_way()
        if self._short is None:
            self._begin_cycle()
            # There is no other protocol here, and the parser has given up on this one.
            if self.parser.should_upgrade() or self._edge.is_draining:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._heard = True
        if self._short is None:
            super().on_body(body)
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Answer a request that came whole and takes the short way; end the body of any other."""
        self._in_body = False
        if self._rest_timer is not None:
            self._body_is_over()
        if self._upgrades:
            return
        if self._short is None:
            super().on_message_complete()
            return
        short, self._short = self._short, None
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        # One for all of them, as only one at a time is under way.
        cycle = self._short_cycle
        cycle.response_complete = False
        cycle.keep_alive = not self._edge.is_draining
        self.cycle = cycle  # type: ignore[assignment]
        self._edge.begin(short, self.headers, body, self)

    def _short_way(self) -> ShortWay | None:
        """Return the short way, if the head that has just ended is of a request that may take it.

        That is one for its very URL, in HTTP/1.1 on a connection that stays open, with nothing to be
        answered before it, whose body has a length and waits for no go-ahead.
        """
        short = self._edge.short_ways.get(self.url)
        before = self.cycle
        parser = self.parser
        if (
            short is None
            or self._is_chunked
            or self.expect_100_continue
            or self._version != "1.1"
            or parser.get_method() != short.verb
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            # What is answered already goes first.
            or (before is not None and not before.response_complete)  # type: ignore[redundant-expr]
        ):
            return None
        return short

    def _go_the_long_way(self) -> None:
        # The body is not all there: what has come so far is handed on.
        self._short = None
        self._begin_cycle()
        self.cycle.keep_alive = not self._edge.is_draining
        for chunk in self._chunks:
            super().on_body(chunk)
        self._chunks.clear()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a task do what is left to do for a request; it is waited for when the server stops."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            self.give_up()
        elif (error := task.exception()) is not None:
            _log.error("answer_failed", exc_info=error)
            self.give_up()

    def take(self, answer: Answer, head: bytes) -> None:
        """Send the answer to a request on the short way; `head` are the lines of its headers."""
        if self.flow.write_paused and not self._short_cycle.disconnected:
            self.run(self._take_later(answer, head))
        else:
            self._take(answer, head)

    async def _take_later(self, answer: Answer, head: bytes) -> None:
        await self.flow.drain()
        self._take(answer, head)

    def _take(self, answer: Answer, head: bytes) -> None:
        cycle = self._short_cycle
        if cycle.disconnected or self.transport.is_closing():
            return
        closes = answer.closes_connection()
        if not cycle.keep_alive and not closes:
            head += b"connection: close\r\n"
        opening = self._edge.opening(answer.status_code, self.server_state.default_headers)
        if len(answer.body) <= _COPIED_BYTES:
            self.transport.write(b"%b%b\r\n%b" % (opening, head, answer.body))
        else:
            self.transport.writelines((b"%b%b\r\n" % (opening, head), answer.body))
        cycle.response_complete = True
        if closes or not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def give_up(self) -> None:
        """Close a connection whose request gets no answer."""
        self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn has the words
        """Answer what is not HTTP; uvicorn calls this."""
        self._refuse(HTTPStatus.BAD_REQUEST, InvalidRequestError(self._fault))

    def _check_head(self) -> None:
        # What is raised in a callback of the parser ends in `send_400_response`.
        self._version = self.parser.get_http_version()
        try:
            head = check_head(self._version, self.headers)
        except BadHeadError as refused:
            self._fault = str(refused)
            raise
        self._is_chunked, self.expect_100_continue = head

    def on_response_complete(self) -> None:
        """Begin the next request that is here already, or to wait for one; cycles call this."""
        # As uvicorn does it, which however makes a timer for each answer and cancels it at the next
        # request. One that looks since when the connection is idle does for all of them.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._watch_taking()
            return
        if self._lingers:
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        if self._refusal is not None:
            self.transport.write(self._refusal)
            self._linger()
            return
        self._was_answered_early = self._in_body
        if self._in_body and self._rest_timer is None:
            self._rest_timer = self.loop.call_later(REST_SECONDS, self._give_up)
        self._begin_idling()

    def _begin_idling(self) -> None:
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._end_if_idle)

    def _idle_again(self) -> None:
        # What came may have begun no request: empty lines, or the rest of one that was answered.
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and not self._in_body:  # type: ignore[redundant-expr]
            self._begin_idling()

    def _end_if_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since is None:
            return  # a request is being answered; its answer begins the wait anew
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._end_if_idle)
        else:
            self._give_up()

    def drain(self) -> None:
        """Let the answer under way, if there is one, be the last of the connection."""
        if self._is_answering():
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close a connection on which nothing is under way; any other closes after its answer."""
        self.drain()
        # A head that does not end is given up in time.
        if not self._is_answering() and not (self._in_head and self._head_bytes):
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete  # type: ignore[redundant-expr]

    def _watch_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_is_over(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _body_is_over(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _watch_taking(self) -> None:
        if self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._watch_taking()

    def _refuse(self, status: HTTPStatus, error: TokenServiceError) -> None:
        answer = refusal(status, error)
        if self._is_answering() and not self._in_body:
            # Whoever sent what was right before it waits for the answers to that.
            self._refusal = answer
            return
        if not self._was_answered_early:
            self.transport.write(answer)
        self._linger()

    def _linger(self) -> None:
        """Close, but go on reading for a while: bytes that nobody reads would take the answer along.

        The kernel answers them with a reset, on which the client's own forgets what it has not handed on.
        """
        if self._lingers or self.transport.is_closing():
            return
        self._lingers = True
        self._head_is_over()
        self._body_is_over()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._rest_timer = self.loop.call_later(LINGER_SECONDS, self._give_up)
