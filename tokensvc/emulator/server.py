"""The stand-in as a server: uvicorn, with what clients of the events socket and faults need of it."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokensvc.emulator.app import create_app
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.control_plane import ABORT_EXTENSION
from tokensvc.emulator.sockets import MAX_MESSAGE_BYTES, allow_long_tokens

__all__ = ["GRACEFUL_SHUTDOWN_SECONDS", "KEEP_ALIVE_SECONDS", "server_config"]

KEEP_ALIVE_SECONDS: Final = 60
"""How long an idle connection is kept; clients of boto3 use theirs again."""

GRACEFUL_SHUTDOWN_SECONDS: Final = 3
"""How long a stop waits for calls and sockets that go on."""


def server_config(config: EmulatorConfig, app: ASGIApp | None = None) -> uvicorn.Config:
    """Return the configuration of a server for `app`, or for a new application where None.

    Raises StateFileError. A caller with a bound socket passes it to `Server.serve(sockets=[...])`
    and names its port in `config`, since stages tell clients where the events socket is.
    """
    allow_long_tokens()
    return uvicorn.Config(
        create_app(config) if app is None else app,
        host=config.host,
        port=config.port,
        http=_Protocol,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        # At DEBUG the WebSocket library logs the handshake's headers, and with them tokens; at INFO
        # uvicorn says what the application says as well.
        log_level="warning",
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


class _Protocol(HttpToolsProtocol):
    """Lets a request break its connection, for the faults `drop_before` and `drop_after`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio does so itself, but not for connections of a socket that a caller has made without
        # naming TCP; answers then take 40 ms longer.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self.transport.abort}}
