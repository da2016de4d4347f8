"""Three replicas, one PostgreSQL behind a network that can be cut, and the emulator: all as processes.

    async with Cluster(folder) as cluster:
        answer = await cluster.client.ask("POST", "/v1/tokens", {"stageArn": cluster.stage_arn})

The client is a small one, as a game's backend would have it: it asks one replica after the other,
and asks again, with the same Idempotency-Key, where there was no answer or one that says "later".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.e2e.installation import Process
from tests.e2e.support import (
    PATIENCE_SECONDS,
    free_ports,
)
from tests.e2e.wire import CuttableWire
from tests.emulator.support import boto_client
from tests.postgres import PostgresServer
from tokensvc.callers import Scope, SqlCallerStore
from tokensvc.keyring import create_master_key
from tokensvc.store import open_engine

__all__ = ["Answer", "Client", "Cluster", "NotAnsweredError"]

REGION: Final = "eu-central-1"
REPLICAS: Final = 3

ASK_SECONDS: Final = 5.0
"""How long the client waits for one answer; longer than any bound of the service's own here."""

LATER: Final = frozenset({429, 502, 503})
"""Statuses after which a client may ask again."""


class NotAnsweredError(AssertionError):
    """A request was not answered within the client's patience."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and when and of whom it was asked (`time.monotonic`)."""

    status: int
    body: Any
    replica: int
    asked_at: float
    answered_at: float


class Client:
    """Asks the replicas in turn; counts what became of every attempt."""

    def __init__(self, ports: list[int], api_key: str) -> None:
        self._ports = ports
        self._turn = 0
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=ASK_SECONDS,
            limits=httpx.Limits(max_connections=200),
            trust_env=False,
        )
        self.attempts: Counter[str] = Counter()
        self.longest_seconds = 0.0

    async def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> Answer:
        """Return the first answer that is not "later"; raises NotAnsweredError."""
        began = time.monotonic()
        # Bytes, once: a repeated request must be the same.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        last = "nothing"
        while time.monotonic() - began < PATIENCE_SECONDS:
            self._turn += 1
            replica = self._turn % len(self._ports)
            url = f"http://127.0.0.1:{self._ports[replica]}{path}"
            asked_at = time.monotonic()
            try:
                answer = await self._http.request(method, url, content=content, headers=headers)
            except httpx.TransportError as error:
                last = type(error).__name__
                self.attempts[last] += 1
                await asyncio.sleep(0.05)
                continue
            now = time.monotonic()
            found = answer.json()
            if answer.status_code not in LATER:
                self.attempts[str(answer.status_code)] += 1
                self.longest_seconds = max(self.longest_seconds, now - began)
                return Answer(answer.status_code, found, replica, asked_at, now)
            last = f"{answer.status_code} {found['code']}"
            self.attempts[last] += 1
            await asyncio.sleep(0.1)
        raise NotAnsweredError(f"{method} {path}: {last}")

    async def aclose(self) -> None:
        await self._http.aclose()


class Cluster:
    """Everything of one run; a context manager."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self.replicas: list[Process | None] = [None] * REPLICAS
        self.logs: list[str] = []
        self._closing = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def _open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        # What was answered must outlive a kill -9 of the server, as it would in production.
        self.postgres = await asyncio.to_thread(PostgresServer, durable=True)
        self._closing.callback(self.postgres.close)
        self._database = await asyncio.to_thread(self.postgres.database)
        self.wire = await self._closing.enter_async_context(CuttableWire(self.postgres.port))
        name = self._database.rpartition("/")[2]
        create_master_key(self.folder / "master.key")
        *ports, emulator_port = free_ports(REPLICAS + 1)
        self.emulator_url = f"http://127.0.0.1:{emulator_port}"
        self.environment = {
            "TOKENSVC_DATA_DIR": str(self.folder),
            "TOKENSVC_REGIONS": REGION,
            "TOKENSVC_DATABASE_URL": self.postgres.url(name, port=self.wire.port),
            "TOKENSVC_AWS_ENDPOINT_URL": self.emulator_url,
            "AWS_ACCESS_KEY_ID": "emulator",
            "AWS_SECRET_ACCESS_KEY": "emulator",
        } | {f"TOKENSVC_{name.upper()}": value for name, value in self.settings.items()}
        self.ports = ports
        emulator = self._run("emulator", "--port", str(emulator_port))
        self._closing.callback(emulator.kill)
        ready = await asyncio.to_thread(
            emulator.output.wait_for_line, lambda line: line.startswith("IVS emulator at")
        )
        assert ready is not None, emulator.output.text
        ivs = boto_client(self.emulator_url, REGION)
        self._closing.callback(ivs.close)
        self._ivs = ivs
        self.stage_arn = ivs.create_stage(name="cluster")["stage"]["arn"]
        self.client = Client(ports, await self._add_caller())
        self._closing.push_async_callback(self.client.aclose)
        self._closing.callback(self._kill_all)
        await asyncio.gather(*(self.start(index) for index in range(REPLICAS)))

    async def _add_caller(self) -> str:
        engine = open_engine(self._database)
        _, api_key = await SqlCallerStore(engine, time.time).add("cluster", list(Scope))
        await engine.dispose()
        return api_key.reveal()

    def _run(self, *arguments: str) -> Process:
        return Process.start(arguments, self.folder, self.environment)

    async def start(self, index: int) -> None:
        """Start a replica, and wait until it serves."""
        process = self._run("serve", "--port", str(self.ports[index]))
        self.replicas[index] = process
        await asyncio.to_thread(process.event, "service_started")

    async def kill(self, index: int) -> None:
        """kill -9."""
        process, self.replicas[index] = self.replicas[index], None
        assert process is not None
        await asyncio.to_thread(process.kill)
        self.logs.append(process.output.text)

    async def stop_all(self) -> None:
        """Stop every replica as a supervisor does; each ends well."""
        for index, process in enumerate(self.replicas):
            if process is not None:
                await asyncio.to_thread(process.stop)
                await self.kill(index)

    def _kill_all(self) -> None:
        for process in self.replicas:
            if process is not None:
                process.kill()

    async def calls(self) -> dict[str, dict[str, Any]]:
        """Return the calls that the emulator counted, by operation."""
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as http:
            answer = await http.get(f"{self.emulator_url}/_emulator/calls")
        return {call["operation"]: call for call in answer.json()["calls"]}

    def public_keys(self) -> set[str]:
        """Return the ARNs of the public keys that IVS holds; it is a call that IVS counts."""
        found = self._ivs.list_public_keys(maxResults=50)
        return {key["arn"] for key in found["publicKeys"]}

    def ledger(self) -> Counter[tuple[str, str]]:
        """Return how many rows each token has, read from the server itself.

        A token is its id and the ARN of its key ("" where IVS made it): an answer that is given
        again is signed anew, under the key of that moment, and what was signed is in the ledger.
        """
        name = self._database.rpartition("/")[2]
        query = "SELECT token_id, coalesce(key_arn, '') FROM issued_tokens"
        rows = self.postgres.sql(query, database=name).splitlines()
        return Counter((token_id, arn) for token_id, _, arn in (row.partition("|") for row in rows))

    async def join(self, token: str) -> ClientConnection | None:
        """Join the stage as the SDK does; None where IVS refuses the token."""
        socket = await connect(
            f"ws{self.emulator_url.removeprefix('http')}/?error_over_ws=1",
            subprotocols=[Subprotocol(token)],
            open_timeout=PATIENCE_SECONDS,
            proxy=None,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = json.loads(await socket.recv())
        if message["type"] == "aws:ivs:STAGE_STATE":
            return socket
        await socket.close()
        return None
