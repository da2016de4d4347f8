"""The processes of the end-to-end tests: `tokensvc dev` as a user starts and stops it.

Nothing here reaches into the service. What a test knows it has read from the output, asked over HTTP,
or asked the emulator through boto3.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import boto3
import httpx
from botocore.config import Config

REGION: Final = "eu-central-1"
# How long anything may take before a test gives up on it; generous, for slow and busy machines.
PATIENCE_SECONDS: Final = 60.0

API_KEY: Final = re.compile(r"\btsk_[A-Za-z0-9_-]+")
STAGE_ARN: Final = re.compile(r"arn:aws:ivs:[a-z0-9-]+:\d+:stage/[A-Za-z0-9-]+")


def tokensvc_command(*arguments: str) -> list[str]:
    """Return the command line that a user of the virtual environment types."""
    return [str(Path(sys.executable).with_name("tokensvc")), *arguments]


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which nothing of the caller's settings or credentials is left."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **extra}


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that were free a moment ago, each another."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Stream:
    """What a process writes to one pipe, kept whole, and waited for without polling."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for_line(self, wanted: Callable[[str], bool]) -> str | None:
        """Return the first line, past or to come, that is wanted; None where the stream ends first.

        Raises TimeoutError after PATIENCE_SECONDS.
        """

        def found() -> str | None:
            return next((line for line in self._lines if wanted(line)), None)

        with self._changed:
            if not self._changed.wait_for(lambda: found() or self._ended, PATIENCE_SECONDS):
                raise TimeoutError(
                    f"no such line in {PATIENCE_SECONDS:.0f} s:\n{self._lines[-20:]}"
                )
            return found()

    def close(self) -> None:
        """Wait until the other end has closed the pipe and everything is read."""
        self._reader.join(PATIENCE_SECONDS)
        assert not self._reader.is_alive(), "somebody still holds the pipe open"
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class RunningDev:
    """One run of `tokensvc dev` over a folder, from ready to stopped; a context manager.

    The same `home` and ports given again are the second start of the same installation.
    """

    def __init__(
        self,
        home: Path,
        *,
        ports: tuple[int, int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.data_dir = home / "keys"
        self.port, self.emulator_port = ports or tuple(free_ports(2))
        self.environment = clean_environment(
            home,
            {
                "TOKENSVC_PORT": str(self.port),
                "TOKENSVC_EMULATOR_PORT": str(self.emulator_port),
                "TOKENSVC_DATA_DIR": str(self.data_dir),
                # Generous, for slow and busy machines.
                "TOKENSVC_AWS_CONNECT_TIMEOUT": "10",
                "TOKENSVC_AWS_READ_TIMEOUT": "30",
                **(settings or {}),
            },
        )
        self._started = time.perf_counter()
        # A session of its own, so that one signal reaches all of it, as Ctrl-C does in a terminal.
        self.process = subprocess.Popen(
            tokensvc_command("dev"),
            cwd=home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout = Stream(self.process.stdout)
        self.stderr = Stream(self.process.stderr)

    @property
    def api_key(self) -> str | None:
        """The API key that this run has printed; None where it has printed none."""
        found = API_KEY.search(self.stdout.text)
        return None if found is None else found[0]

    @property
    def ports(self) -> tuple[int, int]:
        return self.port, self.emulator_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def emulator_url(self) -> str:
        return f"http://127.0.0.1:{self.emulator_port}"

    def __enter__(self) -> Self:
        """Wait until the curl line is printed; what is printed must work from then on."""
        try:
            line = self.stdout.wait_for_line(lambda line: line.lstrip().startswith("curl "))
            assert line is not None, f"exit {self.process.wait(5)}:\n{self.output}"
        except BaseException:
            self.kill()
            raise
        self.seconds_to_ready = time.perf_counter() - self._started
        self.curl_line = line.strip()
        stage = STAGE_ARN.search(self.curl_line)
        assert stage is not None, self.curl_line
        self.stage_arn = stage[0]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it as Ctrl-C does; where the test has failed already, make sure that it is gone."""
        if kind is not None:
            self.kill()
        elif self.process.poll() is None:
            self.interrupt()
            self.expect_clean_exit()

    @property
    def output(self) -> str:
        return f"--- stdout\n{self.stdout.text}--- stderr\n{self.stderr.text}"

    def interrupt(self) -> None:
        """Press Ctrl-C: SIGINT to every process of the terminal's foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """Stop it as a supervisor does: SIGTERM to the one process it knows."""
        os.kill(self.process.pid, signal.SIGTERM)

    def expect_clean_exit(self) -> None:
        """Wait for the end; exit code 0, no traceback, and no process left behind."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
            self._close()
            assert code == 0, f"exit code {code}\n{self.output}"
            assert "Traceback" not in self.output, self.output
            assert not self._group_lives(), "a process was left behind"
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill every process of the run, as a power cut would."""
        if self._group_lives():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self._close()

    def client(self, api_key: str | None = None) -> httpx.Client:
        """Return an HTTP client of the service that shows an API key, by default this run's."""
        shown = api_key or self.api_key
        assert shown is not None, "this run has printed no API key"
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {shown}"},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )

    def mint(self, **fields: object) -> dict[str, Any]:
        """Ask the service for a participant token, of the demo stage unless `stageArn` is given."""
        with self.client() as client:
            answer = client.post("/v1/tokens", json={"stageArn": self.stage_arn, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def ivs(self) -> Any:
        """Return boto3's client of IVS Real-Time, pointed at the emulator."""
        return boto3.client(
            "ivs-realtime",
            region_name=REGION,
            endpoint_url=self.emulator_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 5},
                connect_timeout=PATIENCE_SECONDS,
                read_timeout=PATIENCE_SECONDS,
            ),
        )

    def run_curl_line(self, api_key: str | None = None) -> str:
        """Run the printed line in bash, as one who copies it, and return what it prints."""
        environment = clean_environment(self.home, {"API_KEY": api_key} if api_key else {})
        done = subprocess.run(
            ["bash", "-c", self.curl_line],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
        assert done.stderr == ""
        return done.stdout

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _close(self) -> None:
        self.stdout.close()
        self.stderr.close()


def run_to_end(
    arguments: list[str], home: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself; never raises for its exit code."""
    return subprocess.run(
        arguments,
        cwd=home,
        env=clean_environment(home, environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
        check=False,
    )
