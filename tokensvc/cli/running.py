"""Running servers until somebody asks them to stop.

uvicorn installs signal handlers of its own and stops at once; here a first SIGINT or SIGTERM drains
the servers in the order they were given, so that the service answers what it has accepted while the
emulator it asks is still there. A second one cuts connections off.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final

import uvicorn

from tokensvc.errors import ConfigurationError, TokenServiceError

__all__ = ["Stop", "run_loop", "serving"]

_POLL_SECONDS: Final = 0.01


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Stop:
    """Turns the first SIGINT or SIGTERM into "drain", a second one into "at once"."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def listen(self) -> None:
        """Take over the signals of the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask)

    def _ask(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()


@contextlib.asynccontextmanager
async def serving(
    config: uvicorn.Config, listener: socket.socket, stop: Stop
) -> AsyncIterator[None]:
    """Serve on `listener` while the body runs; drain, within uvicorn's grace, when it ends.

    `stop.asked` is set where the server ends by itself. Raises what kept it from coming up.
    """
    server = _Server(config)
    served = asyncio.create_task(_serve(server, listener))
    cutting = asyncio.create_task(_cut_off(server, stop))
    served.add_done_callback(lambda _: stop.asked.set())
    try:
        while not server.started:
            if served.done():
                await served
                raise _why_not_started(config)
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        server.should_exit = True
        try:
            await served
        finally:
            cutting.cancel()


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        # How uvicorn says that a start failed; in a task it would end the whole loop.
        return


def _why_not_started(config: uvicorn.Config) -> TokenServiceError:
    reason = getattr(config.app, "startup_error", None)
    if isinstance(reason, TokenServiceError):
        return reason
    return ConfigurationError("the server did not start; the log says why")


async def _cut_off(server: uvicorn.Server, stop: Stop) -> None:
    await stop.at_once.wait()
    server.force_exit = True


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop, asyncio's own loop where it is missing."""
    try:
        import uvloop
    except ModuleNotFoundError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
