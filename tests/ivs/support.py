"""What the tests of `tokensvc.ivs` share: a scripted HTTP server, an event loop that never waits."""

from __future__ import annotations

import asyncio
import json
import selectors
import threading
from collections.abc import Callable, Coroutine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from tokensvc.ivs.clients import StaticCredentials

T = TypeVar("T")

REGION = "eu-central-1"
CREDENTIALS = StaticCredentials("test-access-key-id", "test-secret")


class ScriptedIvs:
    """Answers each request with the next behaviour of `script`, and the last one for ever."""

    def __init__(self) -> None:
        self.script: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.released = threading.Event()
        self.arrived = threading.Semaphore(0)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                owner.requests.append((self.path, json.loads(body or b"{}"), headers))
                owner.arrived.release()
                turn = min(len(owner.requests), len(owner.script)) - 1
                owner.script[turn](self)

            def log_message(self, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def will(self, *behaviours: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.script = list(behaviours)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        self.released.wait(60)
        handler.close_connection = True

    @staticmethod
    def drop(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True


def answer(status: int, body: object, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A behaviour that sends `body` (as JSON unless bytes) with headers like `x_amzn_errortype`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it.

    Whatever else the loop waits for, such as a thread, takes no time of its clock: a deadline passes
    while a thread is held.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._owner = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            # Time always passes a little, or a timer that rounding left open would spin.
            self._owner.now += max(timeout, 0.000_001)
        return ready


def without_waiting(scene: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a `JumpingLoop`."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scene)
