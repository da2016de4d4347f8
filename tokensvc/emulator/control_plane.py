"""One request of the AWS API, from its signature to its answer (rest-json).

The order is AWS's own: signature, quota of calls, then the request's contents. A call is answered
only when what it changed is on disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec
import structlog
from litestar.types import HTTPScope, Receive, Send

from tokensvc.emulator.calls import CallLog
from tokensvc.emulator.errors import (
    ApiError,
    InternalServerError,
    RequestTooLargeError,
    SerializationError,
    UnknownOperationError,
)
from tokensvc.emulator.faults import ERRORS, FaultRule, Faults
from tokensvc.emulator.model import REQUESTS, TAG_OPERATIONS
from tokensvc.emulator.operations import HANDLERS, Call, Members
from tokensvc.emulator.quotas import CallQuotas
from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.shapes import check_request
from tokensvc.emulator.signature import signed_region
from tokensvc.emulator.world import World

__all__ = ["ABORT_EXTENSION", "MAX_BODY_BYTES", "PATHS", "TAGS_PATH", "ControlPlane"]

MAX_BODY_BYTES: Final = 1_048_576

ABORT_EXTENSION: Final = "tokensvc.emulator.abort"
"""The ASGI extension through which a server lets a request break its connection; see `server`."""

TAGS_PATH: Final = "/tags/"

PATHS: Final = [f"/{name}" for name in HANDLERS if name not in TAG_OPERATIONS.values()]
"""The paths of all operations but those of tags."""

_log = structlog.get_logger(__name__)


class _ConnectionDropped(Exception):  # noqa: N818 - not an error: a fault that was asked for
    """The answer is not to be sent."""


class ControlPlane:
    """An ASGI application for the operations; belongs to one event loop."""

    def __init__(
        self,
        world: World,
        sessions: Sessions,
        *,
        clock: Callable[[], float],
        save: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """`save` returns when all changes are kept; `clock` measures rates of calls, in seconds."""
        self.faults = Faults()
        self.calls = CallLog()
        self._world = world
        self._sessions = sessions
        self._quotas = CallQuotas(clock)
        self._clock = clock
        self._save = save
        self._sleep = sleep

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            status, members, error_code = 200, await self._answer(scope, receive), None
        except ApiError as error:
            status, members = error.status, {error.member: error.message}
            error_code = error.code
        except _ConnectionDropped:
            await _drop(scope, receive)
            return
        await _send(send, status, members, error_code)

    async def _answer(self, scope: HTTPScope, receive: Receive) -> Members:
        body = await _body(receive)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        region = signed_region(headers)
        operation = _operation(scope)
        self.calls.record(operation, region, self._clock())
        try:
            members = await self._call(operation, region, scope, body)
        except ApiError as error:
            self.calls.record_outcome(operation, region, str(error.status))
            raise
        except _ConnectionDropped:
            self.calls.record_outcome(operation, region, "dropped")
            raise
        self.calls.record_outcome(operation, region, "200")
        return members

    async def _call(self, operation: str, region: str, scope: HTTPScope, body: bytes) -> Members:
        if self._world.config.enforce_quotas:
            self._quotas.take(operation, region)
        fault = self.faults.next_for(operation, region)
        if fault is not None:
            await self._before(fault)
        request = check_request(REQUESTS[operation], _request(operation, scope, body))
        members = HANDLERS[operation](Call(self._world, self._sessions, region, request))
        try:
            await self._save()
        except OSError as error:
            _log.error("emulator_state_not_saved", reason=str(error))
            raise InternalServerError("The state file cannot be written") from error
        if fault is not None and fault.kind == "drop_after":
            raise _ConnectionDropped
        return members

    async def _before(self, fault: FaultRule) -> None:
        if fault.kind == "delay":
            await self._sleep(fault.seconds)
        elif fault.kind == "throttle":
            raise ERRORS["ThrottlingException"]("Rate exceeded")
        elif fault.kind == "error":
            raise ERRORS[fault.code]("A fault that was asked for")
        elif fault.kind == "drop_before":
            raise _ConnectionDropped


def _operation(scope: HTTPScope) -> str:
    path = _path(scope)
    if path.startswith(TAGS_PATH):
        name = TAG_OPERATIONS.get(scope["method"], "")
    else:
        name = path.removeprefix("/") if scope["method"] == "POST" else ""
    if name not in HANDLERS:
        raise UnknownOperationError("No operation has this path and method")
    return name


def _request(operation: str, scope: HTTPScope, body: bytes) -> Any:
    """Return the request's members: from the body, the path and the query, as the model has them."""
    request: Any = {}
    if body:
        try:
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SerializationError("The body is not JSON") from error
        if not isinstance(request, dict):
            raise SerializationError("The body is not a JSON object")
    if operation not in TAG_OPERATIONS.values():
        return request
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    keys = {"tagKeys": query["tagKeys"]} if "tagKeys" in query else {}
    return {**request, **keys, "resourceArn": _path(scope).removeprefix(TAGS_PATH)}


def _path(scope: HTTPScope) -> str:
    # The path that the application sees lacks what it is mounted under.
    return unquote(scope["raw_path"].decode("latin-1"))


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise SerializationError("The request ended early")
        body += message["body"]
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLargeError(f"A request has at most {MAX_BODY_BYTES} bytes")
        if not message["more_body"]:
            return bytes(body)


async def _send(send: Send, status: int, members: Mapping[str, Any], code: str | None) -> None:
    body = msgspec.json.encode(members)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-amzn-requestid", str(uuid.uuid4()).encode("ascii")),
    ]
    if code is not None:
        headers.append((b"x-amzn-errortype", code.encode("ascii")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _drop(scope: HTTPScope, receive: Receive) -> None:
    """Break the connection without a byte of an answer, and return when it is gone."""
    abort: Callable[[], None] = (scope["extensions"] or {})[ABORT_EXTENSION]["abort"]  # type: ignore[assignment]
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass
