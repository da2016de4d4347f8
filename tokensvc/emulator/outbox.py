"""What is on its way to one client: a bounded queue and the task that empties it.

Whoever has something to say puts it here without waiting, so that the control plane can kick a client
whose network has stalled. A client that does not take what it is sent is dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

__all__ = ["Outbox"]

_MAX_FRAMES: Final = 64
_SEND_TIMEOUT_SECONDS: Final = 10.0
_NORMAL: Final = 1000
_TRY_AGAIN_LATER: Final = 1013


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str


class _ConnectionEndedError(Exception):
    """The connection is over, for whatever reason."""


class Outbox:
    """Frames to one client, in order; after `close` nothing more is taken."""

    def __init__(self, send_timeout_seconds: float = _SEND_TIMEOUT_SECONDS) -> None:
        """A client that has not taken a frame within `send_timeout_seconds` is dropped."""
        self._send_timeout_seconds = send_timeout_seconds
        self._frames: asyncio.Queue[str | _Close] = asyncio.Queue(_MAX_FRAMES)
        self._closing = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Have `message` sent as a text frame; a client with 64 frames waiting is dropped."""
        if self._closing:
            return
        if self._frames.full():
            self.close(_TRY_AGAIN_LATER, "too slow")
            return
        self._frames.put_nowait(json.dumps(message, separators=(",", ":")))

    def close(self, code: int = _NORMAL, reason: str = "") -> None:
        """Have the connection closed, after the frames that wait unless there are too many."""
        if self._closing:
            return
        self._closing = True
        while self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait(_Close(code, reason))

    async def serve(self, socket: WebSocket[Any, Any, Any], receive: Callable[[str], None]) -> None:
        """Pass messages both ways until either side closes; `receive` must not block."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._drain(socket))
                group.create_task(_read(socket, receive))
        except* _ConnectionEndedError:
            self._closing = True

    async def _drain(self, socket: WebSocket[Any, Any, Any]) -> None:
        try:
            while True:
                frame = await self._frames.get()
                async with asyncio.timeout(self._send_timeout_seconds):
                    if isinstance(frame, _Close):
                        await socket.close(frame.code, frame.reason)
                        break
                    await socket.send_text(frame)
        except (OSError, TimeoutError, WebSocketDisconnect) as error:
            raise _ConnectionEndedError from error
        raise _ConnectionEndedError


async def _read(socket: WebSocket[Any, Any, Any], receive: Callable[[str], None]) -> None:
    async for text in socket.iter_data("text"):
        receive(str(text))
    raise _ConnectionEndedError
