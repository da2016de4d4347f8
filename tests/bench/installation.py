"""The service as an operator runs it, with everything on.

An API key, a policy with limits of every kind, bans, the durable ledger, metrics, the access log and the
audit record; a key that it imported into the emulator, which is another process. The service has a core
of its own; the emulator, PostgreSQL and the load share the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import boto3
import httpx

from tests.bench.everything_on import what_is_off
from tests.bench.filling import add_bans
from tests.bench.load import Requests
from tests.bench.machine import family, load_cores, on_cores, pinned, server_cores
from tests.postgres import PostgresServer
from tokensvc.keyring import create_master_key

__all__ = ["Installation", "Service", "installed", "postgres_installed"]

REGION = "eu-central-1"
_PATIENCE_SECONDS = 60.0
_TOKENSVC = str(Path(sys.executable).with_name("tokensvc"))
_POLICY = """\
version: 1
limits: {tokensPerSecond: 1000000, burst: 1000000}
roles:
  player:
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: {min: 5, default: 720, max: 1440}
    attributes: {kind: player}
callers:
  bench:
    stages: ["arn:aws:ivs:eu-central-1:*"]
    roles: [player]
    defaultRole: player
    attributes: {allowed: [team]}
    issuer: [auto, local]
    limits: {tokensPerSecond: 900000, burst: 900000, perUserPerMinute: 60}
"""
_AUDIT = "audit.log"
BANS = 100
"""Other users who are banned from the stage."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is ready."""

    pid: int
    port: int
    ready_seconds: float
    """From the start of the process to its first 200 from /readyz."""
    installation: Installation

    @property
    def workers(self) -> list[int]:
        """The processes that serve: all but the one that only watches over several."""
        processes = [pid for pid in family(self.pid) if _is_python(pid)]
        return processes[1:] if len(processes) > 1 else processes

    def requests(self, tokens: int = 1, *, idempotency: bool = False) -> Requests:
        """Return mints for this service's load."""
        of = self.installation
        return Requests(self.pid, self.port, of.api_key, of.stage, tokens, idempotency)

    def look_up(self, queries: Iterable[Mapping[str, str]]) -> list[float]:
        """Ask `GET /v1/tokens` for each query, on one connection; return milliseconds of each."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_SECONDS)
        headers = {"Authorization": f"Bearer {self.installation.api_key}"}
        took = []
        for query in queries:
            begun = time.perf_counter()
            connection.request("GET", f"/v1/tokens?{urlencode(query)}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            took.append((time.perf_counter() - begun) * 1e3)
            if answer.status != HTTPStatus.OK:
                raise RuntimeError(f"a look-up was answered {answer.status}")
        connection.close()
        return took


@dataclass(frozen=True, slots=True)
class Installation:
    """A store, a master key, a caller, a stage, and the emulator that all of it is known to."""

    folder: Path
    environment: Mapping[str, str]
    database_url: str
    stage: str
    api_key: str

    @property
    def sqlite_path(self) -> Path:
        """The database's file; it is a SQLite installation."""
        return self.folder / "tokensvc.db"

    @contextmanager
    def service(self, workers: int = 1) -> Iterator[Service]:
        """Run `tokensvc serve`; yields it once a key signs."""
        started = time.monotonic()
        arguments = ["serve", "--port", "0", "--workers", str(workers)]
        announces = re.compile(r'(?<="port":)\d+')
        with _process(arguments, self.environment, announces, server_cores(workers)) as found:
            port, pid = found
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not _ready(port):
                if time.monotonic() > deadline:
                    raise RuntimeError("the service does not become ready")
                time.sleep(0.02)
            found_ready = time.monotonic() - started
            # What several workers count and log is not told by one of them.
            if workers == 1 and (
                off := what_is_off(port, pid, self.api_key, self.stage, self.folder / _AUDIT)
            ):
                raise RuntimeError(f"not everything is on: {'; '.join(off)}")
            yield Service(pid, port, found_ready, self)


@contextmanager
def installed(database_url: str | None = None) -> Iterator[Installation]:
    """Make an installation, on SQLite where no other database is given, that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tokensvc-bench-") as name:
        folder = Path(name)
        policy = folder / "policy.yaml"
        policy.write_text(_POLICY)
        policy.chmod(0o600)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": name,
            "LANG": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "TOKENSVC_DATA_DIR": name,
            "TOKENSVC_REGIONS": REGION,
            "TOKENSVC_HOST": "127.0.0.1",
            "TOKENSVC_POLICY_FILE": str(policy),
            "TOKENSVC_LEDGER": "durable",
            "TOKENSVC_AUDIT": str(folder / _AUDIT),
        }
        if database_url:
            environment["TOKENSVC_DATABASE_URL"] = database_url
        port_of = re.compile(r"(?<=127\.0\.0\.1:)\d+")
        with _process(["emulator", "--port", "0"], environment, port_of, load_cores()) as (port, _):
            environment["TOKENSVC_AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            stage = _new_stage(environment["TOKENSVC_AWS_ENDPOINT_URL"])
            create_master_key(folder / "master.key")
            _run(["db", "upgrade"], environment)
            caller = json.loads(_run(["callers", "add", "bench", "--json"], environment))
            url = database_url or f"sqlite+aiosqlite:///{folder / 'tokensvc.db'}"
            add_bans(url, stage, BANS)
            yield Installation(folder, environment, url, stage, caller["apiKey"])


@contextmanager
def postgres_installed() -> Iterator[Installation]:
    """Make an installation on a PostgreSQL of its own, durable, on the cores of the load."""
    with on_cores(load_cores()):
        server = PostgresServer(durable=True, shared_buffers="512MB")
    try:
        with installed(server.database()) as installation:
            yield installation
    finally:
        server.close()


def _new_stage(endpoint: str) -> str:
    stages = boto3.client(
        "ivs-realtime",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
    )
    arn: str = stages.create_stage(name="bench")["stage"]["arn"]
    return arn


def _ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _is_python(pid: int) -> bool:
    # Several workers come with a process of multiprocessing's that only counts what they share.
    return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def _run(arguments: list[str], environment: Mapping[str, str]) -> str:
    return subprocess.run(
        [_TOKENSVC, *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=True,
    ).stdout


@contextmanager
def _process(
    arguments: list[str],
    environment: Mapping[str, str],
    announces: re.Pattern[str],
    cores: set[int],
) -> Iterator[tuple[int, int]]:
    """Run `tokensvc` until the body ends; yields the port that it announced, and its pid."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*pinned(cores), _TOKENSVC, *arguments],
            env=dict(environment),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield int(_wait_for(process, said.fileno(), announces)), process.pid
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(process: subprocess.Popen[bytes], said: int, announces: re.Pattern[str]) -> str:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        text = os.pread(said, 1_000_000, 0).decode("utf-8", "replace")
        if found := announces.search(text):
            return found[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"tokensvc did not start:\n{text}")
        time.sleep(0.02)
