"""A service that listens, in a thread of the test's process, with an Amazon IVS in memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from tests.http.support import FakeIvs, install, settings_for, stage_arn
from tokensvc.http.app import create_app
from tokensvc.http.server import bind_socket, server_config

# Those of the examples in the OpenAPI document, and one more.
STAGES = tuple(map(stage_arn, ("abcdABCDefgh", "stage1")))


class Running:
    """A service at `url`, whose caller `api_key` has every scope."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key


@contextlib.contextmanager
def service_in_a_thread(folder: Path) -> Iterator[Running]:
    """Install a service under `folder` and serve it while the body runs."""
    folder.mkdir()
    settings = settings_for(folder)
    keys = asyncio.run(install(settings))
    app = create_app(settings, gateway=FakeIvs(stages={*STAGES}))
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(server_config(settings, app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{port}", keys["all"])
        finally:
            server.should_exit = True
            thread.join()
