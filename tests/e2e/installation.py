"""A production-like installation for tests: a folder, an emulator, and real `tokensvc` processes.

Unlike `tokensvc dev`, the emulator here is the test's own, so that a test can hold an AWS call and
kill the process that waits for it, and several replicas can share one store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.e2e.support import (
    PATIENCE_SECONDS,
    Stream,
    clean_environment,
    run_to_end,
    tokensvc_command,
)
from tests.emulator.support import RunningEmulator
from tokensvc.callers import Scope, SqlCallerStore
from tokensvc.http.parts import open_parts
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.clients import ClientSettings, StaticCredentials
from tokensvc.keyring import KeyPhase, KeyRecord, SqlRingStore, create_master_key
from tokensvc.settings import Settings
from tokensvc.store import open_engine, upgrade

REGION = "eu-central-1"


class HeldCalls:
    """Stands in for the emulator's `sleep`: a delayed call waits until the test lets it go on."""

    def __init__(self) -> None:
        self._held = threading.Semaphore(0)
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        del seconds
        go_on = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), go_on))
        self._held.release()
        await go_on.wait()

    def wait(self) -> None:
        """Wait until a call has come."""
        assert self._held.acquire(timeout=PATIENCE_SECONDS), "no call came"

    def let_go(self) -> None:
        """Let every held call be done, whoever waits for its answer."""
        while self._waiting:
            loop, go_on = self._waiting.pop()
            loop.call_soon_threadsafe(go_on.set)


@dataclass
class Installation:
    """Store, master key, one caller, one stage."""

    folder: Path
    emulator: RunningEmulator
    api_key: str
    stage_arn: str
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, emulator: RunningEmulator, **settings: str) -> Self:
        folder.mkdir()
        made = Settings(data_dir=folder)
        upgrade(made.database_url)
        create_master_key(made.master_key_file)

        async def add_caller() -> str:
            engine = open_engine(made.database_url)
            _, api_key = await SqlCallerStore(engine, time.time).add("e2e", list(Scope))
            await engine.dispose()
            return api_key.reveal()

        stage = emulator.run(lambda: emulator.world.create_stage(REGION))
        return cls(
            folder=folder,
            emulator=emulator,
            api_key=asyncio.run(add_caller()),
            stage_arn=stage.arn,
            environment={
                "TOKENSVC_DATA_DIR": str(folder),
                "TOKENSVC_REGIONS": REGION,
                "TOKENSVC_AWS_ENDPOINT_URL": emulator.url,
                "TOKENSVC_PORT": "0",
                "AWS_ACCESS_KEY_ID": "emulator",
                "AWS_SECRET_ACCESS_KEY": "emulator",
                **{f"TOKENSVC_{name.upper()}": value for name, value in settings.items()},
            },
        )

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Run a command to its end, and return what it printed."""
        done = run_to_end(tokensvc_command(*arguments), self.folder, self.environment)
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def keys(self, *arguments: str, expect: int = 0) -> Any:
        """Run `tokensvc keys ... --json`."""
        return json.loads(self.run("keys", *arguments, "--json", expect=expect))

    def prepare(self) -> None:
        """Give the ring its ACTIVE and its STANDBY key, in this process: another one takes a second."""

        async def prepare() -> None:
            gateway = BotoIvsGateway(
                ClientSettings(endpoint_url=self.emulator.url),
                credentials=StaticCredentials("emulator", "emulator"),
            )
            settings = Settings(data_dir=self.folder, regions=(REGION,))
            async with open_parts(settings, time.time, gateway=gateway) as parts:
                made = await parts.keys.rotate_if_due(REGION)
                assert made.status.healthy, made
            await gateway.aclose()

        asyncio.run(prepare())

    def stored(self) -> tuple[KeyRecord, ...]:
        """Return the keys of the stored ring that are not DELETED."""

        async def load() -> tuple[KeyRecord, ...]:
            engine = open_engine(Settings(data_dir=self.folder).database_url)
            ring = await SqlRingStore(engine, "default", time.time).load(REGION)
            await engine.dispose()
            return tuple(key for key in ring.keys if key.phase is not KeyPhase.DELETED)

        return asyncio.run(load())

    def at_ivs(self) -> set[str]:
        """Return the ARNs of the public keys that IVS holds."""
        world = self.emulator.world
        return set(self.emulator.run(lambda: {key.arn for key in world.public_keys(REGION)}))

    def start(self, *arguments: str) -> Process:
        """Start a command that is to be killed, or to be stopped."""
        return Process.start(arguments, self.folder, self.environment)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Replica]:
        """Run a replica, from ready to stopped by SIGTERM."""
        process = self.start("serve")
        try:
            yield self.replica(process)
            process.stop()
        finally:
            process.kill()

    def replica(self, process: Process) -> Replica:
        """Wait until `tokensvc serve` answers."""
        listening = process.event("listening")
        process.event("service_started")
        return Replica(self, f"http://127.0.0.1:{listening['port']}", process)

    async def joins(self, token: str) -> bool:
        """Open the events socket as the SDK does, and tell whether the stage lets the token in."""
        async with connect(
            f"{self.emulator.events_url}/?error_over_ws=1",
            subprotocols=[Subprotocol(token)],
            proxy=None,
        ) as socket:
            async with asyncio.timeout(PATIENCE_SECONDS):
                message = json.loads(await socket.recv())
        return bool(message["type"] == "aws:ivs:STAGE_STATE")


class Process:
    """A running command and its output, both streams as one."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None
        self._popen = popen
        self.output = Stream(popen.stdout)

    @classmethod
    def start(
        cls, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> Process:
        """Start a command of the service in `folder`, with these settings and no others."""
        return cls(
            subprocess.Popen(
                tokensvc_command(*arguments),
                cwd=folder,
                env=clean_environment(folder, environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        )

    def event(self, name: str, saying: str = "") -> dict[str, Any]:
        """Wait for a line of the log that has `saying` in it, and return it."""
        line = self.output.wait_for_line(
            lambda line: f'"event":"{name}"' in line and saying in line
        )
        assert line is not None, f"exit {self._popen.wait(5)}:\n{self.output.text}"
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def stop(self) -> None:
        """Stop it as a supervisor does, and expect it to end well."""
        self._popen.terminate()
        code = self._popen.wait(PATIENCE_SECONDS)
        assert code == 0, f"exit {code}\n{self.output.text}"

    def kill(self) -> None:
        """kill -9, as a power cut."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE_SECONDS)
        self.output.close()


@dataclass
class Replica:
    """One serving process."""

    installation: Installation
    url: str
    process: Process

    def client(self) -> httpx.Client:
        return httpx.Client(**self._options())

    def async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self.installation.api_key}"},
            "timeout": PATIENCE_SECONDS,
            "trust_env": False,
        }

    def mint(self, **fields: object) -> dict[str, Any]:
        body = {"stageArn": self.installation.stage_arn, "issuer": "local", **fields}
        with self.client() as client:
            answer = client.post("/v1/tokens", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        assert isinstance(found, dict)
        return found
