"""The official web SDK of Amazon IVS in headless Chromium, as tests call it.

A page of ours (browser/) loads the SDK's own bundle; the calls here are that page's functions, each
bounded in time. The browser resolves no name but loopback's: whatever the SDK wants of the world
(it reports statistics) goes nowhere.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, WebSocket, sync_playwright

FOLDER: Final = Path(__file__).parent / "browser"
SDK: Final = "node_modules/amazon-ivs-web-broadcast/dist/amazon-ivs-web-broadcast.js"
FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/sdk.js": (SDK, "text/javascript"),
}
CALL_SECONDS: Final = 30
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)

_CALL: Final = """
([name, values, seconds]) => Promise.race([
  ivs[name](...values),
  new Promise((_, fail) =>
    setTimeout(() => fail(new Error(`ivs.${name} took over ${seconds} s`)), seconds * 1000)),
])
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path not in FILES:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        name, kind = FILES[self.path]
        content = (FOLDER / name).read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: pytest's output is for the tests."""


class SdkPage:
    """One page with the SDK, as on a participant's device.

    `name` stands for a stage or a connection of the page; tests choose it.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[str] = []
        """What servers have sent on WebSockets, in order."""
        page.on("websocket", self._listen)

    def join(self, name: str, token: str, connection: str | None = None) -> dict[str, Any]:
        """Return {"participant": ...}, the SDK's own view of it, or {"error": {"code": ...}}."""
        return self._call("join", name, token, connection)

    def exchange(self, name: str, token: str) -> dict[str, Any]:
        """Return {"participant": ...} as it is after the exchange, or {"error": ...}."""
        return self._call("exchange", name, token)

    def leave(self, name: str) -> None:
        self._call("leave", name)

    def left(self, name: str) -> str:
        """Wait until the stage is left and return the SDK's reason."""
        return self._call("left", name)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what the SDK has told about the stage until now."""
        return self._call("events", name)

    def connect(self, name: str, token: str) -> dict[str, Any]:
        """Open a RealTimeConnection; return {"state": ...} or {"error": ...}."""
        return self._call("connect", name, token)

    def disconnected(self, name: str) -> dict[str, Any]:
        """Wait until the RealTimeConnection is closed; return its state and error."""
        return self._call("disconnected", name)

    def _call(self, name: str, *values: object) -> Any:
        return self.page.evaluate(_CALL, [name, values, CALL_SECONDS])

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: self.frames.append(str(frame)))


class SdkBrowser:
    """The browser, and the server of its page."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url

    @contextmanager
    def page(self, *, now: float | None = None) -> Iterator[SdkPage]:
        """Open a page that shares nothing with others; `now` is its clock, in Unix seconds."""
        with self._browser.new_context() as context:
            page = context.new_page()
            if now is not None:
                page.clock.set_fixed_time(now)
            sdk = SdkPage(page)
            page.goto(self._url)
            yield sdk


@contextmanager
def open_browser() -> Iterator[SdkBrowser]:
    """Start Chromium and the server of the page."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "Chromium is missing: run .ci/ensure-browser (make test does)"
    assert (FOLDER / SDK).exists(), "the SDK is missing: run .ci/ensure-browser (make test does)"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            with (
                sync_playwright() as playwright,
                playwright.chromium.launch(executable_path=chromium, args=list(FLAGS)) as browser,
            ):
                yield SdkBrowser(browser, f"http://127.0.0.1:{server.server_port}/")
        finally:
            server.shutdown()
            serving.join()
