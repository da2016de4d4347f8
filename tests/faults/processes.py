"""`tokensvc serve` as an operator runs it, over a copy of an installation and an IVS of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import httpx

from tests.emulator.support import RunningEmulator
from tests.faults.asking import outcome, request_of
from tests.faults.world import Installation
from tests.http.support import REGION
from tokensvc.http.server import bind_socket
from tokensvc.settings import PREFIX

__all__ = ["Serving", "serving"]

PATIENCE_SECONDS: Final = 60.0


class Serving:
    """One run of `tokensvc serve`."""

    def __init__(
        self, installation: Installation, process: subprocess.Popen[bytes], url: str, log: Path
    ) -> None:
        self.process = process
        self.installation = installation
        self.authorization = {"authorization": f"Bearer {installation.api_keys['all']}"}
        self.url = url
        self._log = log

    def ask(self, column: str) -> str:
        """Do what a column of the table is about, on a connection of its own; say what came of it."""
        method, path, body = request_of(column, self.installation.subject)
        answer = httpx.request(
            method,
            self.url + path,
            json=body,
            headers=self.authorization,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )
        return outcome(column, answer)

    def until(self, column: str, wanted: str) -> None:
        """Wait until a question is answered so; the process must not end meanwhile."""
        said = ""
        while said != wanted:
            with contextlib.suppress(httpx.TransportError):
                said = self.ask(column)
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"ended with {self.process.wait(0.02)}, said {said}")

    def told(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log has so many lines of an event, and return them."""
        while True:
            lines = map(json.loads, self._log.read_bytes().splitlines())
            found = [line for line in lines if line["event"] == event]
            if len(found) >= count:
                return found
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"ended with {self.process.wait(0.02)}")

    def end(self) -> int:
        """Ask it to end, and return with what it did."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def serving(
    installation: Installation, folder: Path, *, log: Path | None = None, **settings: str
) -> Iterator[Serving]:
    """Run a copy of `installation` in `folder`; the log goes to `log`, or into the folder.

    `settings` are named as in the environment, without the prefix.
    """
    shutil.copytree(installation.folder, folder)
    log = log or folder / "log"
    with (
        RunningEmulator(
            enforce_quotas=False,
            state_file=folder / "ivs.json",
            public_url="wss://events.example",
        ) as ivs,
        log.open("ab") as stream,
    ):
        with bind_socket("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        process = _start(
            stream,
            {
                "DATA_DIR": str(folder / "data"),
                "REGIONS": REGION,
                "PORT": str(port),
                "AWS_ENDPOINT_URL": ivs.url,
                "STANDBY_MIN_AGE": "0",
                **settings,
            },
        )
        try:
            yield Serving(installation, process, f"http://127.0.0.1:{port}", log)
        finally:
            process.kill()
            process.wait()


def _start(stderr: IO[bytes], settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.Popen(
        [sys.executable, "-m", "tokensvc", "serve"],
        env={
            **own,
            **{PREFIX + name: value for name, value in settings.items()},
            "AWS_ACCESS_KEY_ID": "AKIDEMULATOR0000",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        },
        stderr=stderr,
    )
