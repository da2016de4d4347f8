"""The server: uvicorn on one socket, in one process or in several.

The socket is bound and listened on before anything else, so a port that is taken is known at once, and
connections that come while a worker is being replaced wait in the socket's queue.

SIGTERM and SIGINT end the accepting; what was accepted is answered, within `TOKENSVC_SHUTDOWN_GRACE`
seconds. That includes who waits in the queue, and requests that are on their way on connections that
are kept open: for LINGER_SECONDS they are served, each with `Connection: close`, and only what is idle
then is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

import structlog
import uvicorn

from tokensvc.errors import ConfigurationError
from tokensvc.http.admission import oidc_config, read_policy
from tokensvc.http.app import create_app
from tokensvc.http.arenas import share_arenas
from tokensvc.http.draining import has_waiting, refuse_connections
from tokensvc.http.edge import Edge
from tokensvc.http.parts import open_parts
from tokensvc.http.protocol import BoundedHttpProtocol
from tokensvc.http.siblings import Siblings, Wires
from tokensvc.http.workers import run_workers
from tokensvc.settings import Settings
from tokensvc.telemetry.logging import configure_logging

__all__ = ["bind_socket", "serve", "server_config", "shown_address"]

BACKLOG: Final = 2048
"""Connections that may wait to be accepted; the kernel may allow fewer (net.core.somaxconn)."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the 60 seconds after which load balancers commonly reuse a connection no more."""

LINGER_SECONDS: Final = 1.0
"""How long, after the signal, a request on a connection that was idle is still answered."""

_LOOK_SECONDS: Final = 0.01

_GC_THRESHOLDS: Final = (1_000, 10, 800)
"""Objects made and not freed before the young ones are looked through, and so on for the older ones.

Everybody waits meanwhile: 0.1 to 1 ms for the young ones, 2.5 at most for the middle ones, 5 for all,
which is seldom. With 20,000 it was 3 to 10 ms for the young ones alone, and no less in sum.
"""

_SWITCH_SECONDS: Final = 0.0002
"""How long a thread that waits for the interpreter lets another one go on; Python's own is 5 ms.

The ledger's thread asks twice in a commit. Beside batches, 1 ms made every single mint a tenth slower.
"""

_log = structlog.get_logger(__name__)


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; port 0 takes a free one.

    Raises ConfigurationError, in one line, for a port that is taken, an address that is not this
    machine's, and a port that needs privileges.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{host!r} is not an address to listen on.") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listening already: two sockets can be bound to one port, and only one can listen on it.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigurationError(
            f"Cannot listen on {shown_address(host, port)}: {reason.lower()}."
        ) from error
    listener.setblocking(False)
    return listener


def server_config(settings: Settings, app: Edge) -> uvicorn.Config:
    """Return how uvicorn serves `app`; it logs through the process's logging, warnings only."""
    return uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        loop="uvloop",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        log_level="info" if settings.log_level == "debug" else "warning",
        # The edge logs requests, with the route's template instead of the path.
        access_log=False,
        server_header=False,
        # Nothing here asks who is at the other end of the connection.
        proxy_headers=False,
        workers=1,
        limit_concurrency=settings.max_connections,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_grace,
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; blocking, in the main thread.

    Raises ConfigurationError, or another TokenServiceError, where the service cannot start.
    """
    configure_logging(settings.log_level, settings.log_format)
    with bind_socket(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        _log.info("listening", host=host, port=port, workers=settings.workers)
        if settings.workers == 1:
            serve_alone(settings, listener)
            return
        # What is wrong with the configuration is said once, here, and not by every worker.
        asyncio.run(_check(settings))
        run_workers(settings, listener, serve_as_worker)


def serve_alone(
    settings: Settings,
    listener: socket.socket,
    *,
    tend_keys: bool = True,
    siblings: Siblings | None = None,
) -> None:
    """Serve on `listener` in this process until a signal ends it; closes it."""
    share_arenas()
    # Each process counts for itself, so each has its part of a limit.
    app = create_app(
        settings, tend_keys=tend_keys, limit_share=1 / settings.workers, siblings=siblings
    )
    # The socket of several workers is their parent's to end.
    server = Server(
        server_config(settings, app), own_process=True, own_socket=settings.workers == 1
    )
    try:
        server.run(sockets=[listener])
    except SystemExit:
        if app.startup_error is not None:
            raise app.startup_error from None
        raise


def serve_as_worker(settings: Settings, listener: socket.socket, wires: Wires, index: int) -> None:
    """Serve as worker number `index`; one of them is enough to look after the keys."""
    configure_logging(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=index)
    siblings = Siblings(wires, index)
    serve_alone(settings, listener, tend_keys=index == 0, siblings=siblings)


class Server(uvicorn.Server):
    """uvicorn's server, which after a signal ends as a program that did what it was asked to."""

    def __init__(
        self, config: uvicorn.Config, *, own_process: bool = False, own_socket: bool = False
    ) -> None:
        """Take `own_process` where nothing but this server runs in the process: it is tuned for it.

        And `own_socket` where no other process accepts on its socket.
        """
        super().__init__(config)
        self._own_process = own_process
        self._own_socket = own_socket

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, with what has been loaded by then left out of garbage collection."""
        await super().startup(sockets)
        if self._own_process:
            _settle()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, then close; see above."""
        listeners = sockets or []
        if self._own_socket:
            for listener in listeners:
                refuse_connections(listener)
        edge: Edge = self.config.app  # type: ignore[assignment]
        edge.is_draining = True
        _log.info("draining", connections=len(self.server_state.connections))
        for connection in self.server_state.connections:
            connection.drain()  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_SECONDS
        while not self.force_exit and loop.time() < until:
            waiting = any(map(has_waiting, listeners))
            # Who waited is a connection after this, if the socket is ours alone.
            await asyncio.sleep(_LOOK_SECONDS)
            if not waiting and not self.server_state.connections:
                break
        # A process that was held up looks once more at what has come meanwhile.
        await asyncio.sleep(_LOOK_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM by draining; uvicorn would raise them again afterwards."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; SIGHUP reads anew what may be changed meanwhile, and touches no request."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        # Blocked until now (`cli/serve.py`, `workers.py`), so that none ends it before it can listen.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            await super().serve(sockets)
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    def _reload(self) -> None:
        edge: Edge = self.config.app  # type: ignore[assignment]
        edge.reload()


def _settle() -> None:
    # All that is loaded by now stays; looking through it again and again took a tenth of a mint.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    # The ledger's thread asks for the interpreter several times in each commit, for which requests wait.
    sys.setswitchinterval(_SWITCH_SECONDS)


async def _check(settings: Settings) -> None:
    await asyncio.to_thread(read_policy, settings, time.time)
    oidc_config(settings)
    async with open_parts(settings, time.time):
        _log.info("configuration_checked")


def shown_address(host: str, port: int) -> str:
    """Return `host:port` as URLs have it."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]:{port}"
    return f"{host}:{port}"
