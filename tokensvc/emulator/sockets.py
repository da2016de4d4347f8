"""The events sockets that the official clients open: `/` for one stage, `/sanic` shared by several.

What is said here is what the web SDK 1.41 says and expects (tried with it); none of it is documented
by AWS. A browser can set no header on a WebSocket, so tokens travel as sub-protocols, of which the
server must select the first, or the browser fails the connection.

The application's `state.door` must be a `Door`. The server that runs it should bound messages to
`MAX_MESSAGE_BYTES` and must have called `allow_long_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import structlog
from litestar import WebSocket, websocket
from litestar.datastructures import State
from websockets import http11

from tokensvc.emulator.outbox import Outbox
from tokensvc.emulator.seat import JOIN_ERROR, STAGE_STATE, Door, Seat
from tokensvc.emulator.verification import ConnectionClaims, TokenRefusedError

__all__ = ["MAX_MESSAGE_BYTES", "SOCKET_ROUTES", "allow_long_tokens"]

MAX_MESSAGE_BYTES: Final = 65_536
"""Bytes of a message from a client. An exchange carries two tokens of at most 16,384 characters."""

_MAX_HEADER_LINE_BYTES: Final = 32_768
"""Bytes of a line of the handshake. The SDK sends sub-protocols of up to 16,384 characters."""

_MAX_STAGES: Final = 50
"""Stages on a shared connection, as in the SDK."""
_MAX_LOGICAL_ID_CHARS: Final = 128

_POLICY_VIOLATION: Final = 1008
_INVALID_MESSAGE: Final = 1007
_REVOKED: Final = "token has been revoked"
"""By this reason of a 1008 the SDK knows a revocation."""

_JOIN_STAGE: Final = "aws:ivs:JOIN_STAGE"
_PONG: Final = {"type": "PONG"}
_JOIN_ERROR_TYPES: Final = {"INTERNAL": "INTERNAL_SERVER_ERROR", "BAD_REQUEST": "BAD_REQUEST"}

_Socket: TypeAlias = WebSocket[Any, Any, State]
_log = structlog.get_logger(__name__)


def allow_long_tokens() -> None:
    """Have this process take sub-protocols as long as the SDK sends them.

    The library behind uvicorn's WebSockets reads header lines of 8,192 bytes; its only setting is
    an environment variable that is read once, at the first import.
    """
    http11.MAX_LINE_LENGTH = max(http11.MAX_LINE_LENGTH, _MAX_HEADER_LINE_BYTES)


@websocket("/")
async def stage_socket(socket: _Socket) -> None:
    """Serve one participant: its token is the sub-protocol."""
    protocols = _protocols(socket)
    outbox = Outbox()
    topic = socket.query_params.get("topic")
    seat: Seat | None = None
    try:
        seat = _door(socket).admit(
            protocols[0] if protocols else None,
            send=outbox.send,
            gone=outbox.close,
            topic=None if topic is None else topic.partition("/")[0],
        )
        outbox.send(STAGE_STATE)
    except TokenRefusedError as error:
        if not _errors_over_socket(socket):
            await socket.close()
            return
        _refuse(outbox, error)
    try:
        await socket.accept(subprotocols=protocols[0] if protocols else None)
        await outbox.serve(socket, _receiver(outbox, seat.receive if seat else None))
    finally:
        if seat is not None:
            seat.leave()


@websocket("/sanic")
async def shared_socket(socket: _Socket) -> None:
    """Serve several stages of one client: a connection token, then `<logicalId>~<token>` each."""
    protocols = _protocols(socket)
    outbox = Outbox()
    door = _door(socket)
    shared: _SharedConnection | None = None
    try:
        claims = door.verifier.connection(protocols[0] if protocols else None)
        shared = _SharedConnection(door, claims, outbox)
    except TokenRefusedError as error:
        _log.info("connection_refused", code=error.code, why=error.message)
        if not _errors_over_socket(socket):
            await socket.close()
            return
        _refuse(outbox, error)
    try:
        if shared is not None:
            shared.open(protocols[1:])
        await socket.accept(subprotocols=protocols[0] if protocols else None)
        await outbox.serve(socket, _receiver(outbox, shared.receive if shared else None))
    finally:
        if shared is not None:
            shared.close()


SOCKET_ROUTES: Final = (stage_socket, shared_socket)
"""The route handlers of the events sockets."""


class _SharedConnection:
    """The stages that are joined over one connection, by logical id; the `SharedLink` of it."""

    def __init__(self, door: Door, claims: ConnectionClaims, outbox: Outbox) -> None:
        self._door = door
        self._claims = claims
        self._outbox = outbox
        self._seats: dict[str, Seat] = {}

    def open(self, carried: list[str]) -> None:
        """Begin, with the stages that the handshake carried; `close` must follow."""
        self._door.sessions.open_shared(self._claims.region, self._claims.token_id, self)
        for protocol in carried:
            logical_id, _, token = protocol.partition("~")
            self._join(logical_id, token, request_id=logical_id)

    def close(self) -> None:
        """Leave every stage."""
        self._leave_all()
        self._door.sessions.close_shared(self._claims.region, self._claims.token_id, self)

    def revoked(self) -> None:
        """Leave every stage and close, since the connection token was revoked."""
        self._leave_all()
        self._outbox.close(_POLICY_VIOLATION, _REVOKED)

    def receive(self, frame: Mapping[str, Any]) -> None:
        """Act on a frame: `{"logicalId", "message": {"type", "payload"}}`."""
        logical_id, message = frame.get("logicalId"), frame.get("message")
        if not isinstance(logical_id, str) or not isinstance(message, dict):
            self._outbox.close(_INVALID_MESSAGE, "malformed frame")
            return
        payload = message.get("payload")
        match message.get("type"):
            case "aws:ivs:JOIN_STAGE":
                request = payload if isinstance(payload, dict) else {}
                token = request.get("token")
                self._join(
                    logical_id,
                    token if isinstance(token, str) else None,
                    request_id=request.get("requestId"),
                )
            case "aws:ivs:LEAVE_STAGE":
                self._leave(logical_id)
            case _ if logical_id in self._seats:
                self._seats[logical_id].receive(message)
            case _:
                _log.debug("frame_for_unknown_stage")

    def _join(self, logical_id: str, token: str | None, request_id: object) -> None:
        self._leave(logical_id)

        def send(message: Mapping[str, Any]) -> None:
            self._outbox.send({"logicalId": logical_id, "message": message})

        def gone() -> None:
            self._seats.pop(logical_id, None)

        answer: dict[str, Any] = {"requestId": request_id}
        try:
            self._check_room(logical_id)
            self._seats[logical_id] = self._door.admit(
                token, send=send, gone=gone, connection=self._claims
            )
            answer["stageState"] = STAGE_STATE
        except TokenRefusedError as error:
            answer["error"] = _join_error(error)
        send({"type": _JOIN_STAGE, "payload": answer})

    def _check_room(self, logical_id: str) -> None:
        if not 0 < len(logical_id) <= _MAX_LOGICAL_ID_CHARS:
            raise TokenRefusedError("BAD_REQUEST", "logicalId is empty or too long")
        if len(self._seats) >= _MAX_STAGES:
            raise TokenRefusedError("BAD_REQUEST", f"more than {_MAX_STAGES} stages")

    def _leave(self, logical_id: str) -> None:
        seat = self._seats.pop(logical_id, None)
        if seat is not None:
            seat.leave()

    def _leave_all(self) -> None:
        for logical_id in list(self._seats):
            self._leave(logical_id)


def _door(socket: _Socket) -> Door:
    door: Door = socket.app.state.door
    return door


def _protocols(socket: _Socket) -> list[str]:
    return [protocol for protocol in socket.scope["subprotocols"] if protocol]


def _errors_over_socket(socket: _Socket) -> bool:
    return socket.query_params.get("error_over_ws") == "1"


def _refuse(outbox: Outbox, error: TokenRefusedError) -> None:
    outbox.send({"type": JOIN_ERROR, "payload": {"code": error.code, "message": error.message}})
    outbox.close()


def _join_error(error: TokenRefusedError) -> dict[str, Any]:
    """The error of a JOIN_STAGE: the SDK takes the code from `details` of a NOT_AUTHORIZED."""
    kind = _JOIN_ERROR_TYPES.get(error.code, "NOT_AUTHORIZED")
    return {
        "type": kind,
        "fatal": kind != "INTERNAL_SERVER_ERROR",
        "nominal": True,
        "message": error.message,
        "details": {"code": error.code},
    }


def _receiver(
    outbox: Outbox, receive: Callable[[Mapping[str, Any]], None] | None
) -> Callable[[str], None]:
    """Return what takes a text frame: keeps the connection alive and passes other messages on."""

    def received(text: str) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            outbox.close(_INVALID_MESSAGE, "not a JSON object")
        elif message.get("type") == "PING":
            outbox.send(_PONG)
        elif receive is not None:
            receive(message)

    return received
