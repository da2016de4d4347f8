"""Many requests that arrive in the same turn of the event loop, each on a connection of its own."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from tests.http.support import stage_arn
from tests.http.test_server import Connection, Listening, until
from tokensvc.http.edge import Edge
from tokensvc.http.protocol import BoundedHttpProtocol
from tokensvc.ledger import LedgerWriter

__all__ = ["Ask", "Crowd", "Gate", "Visitor"]


@dataclass
class Ask:
    """One request for a token; a header that is empty is left out."""

    body: bytes
    headers: dict[str, bytes] = field(default_factory=dict)
    caller: str = "all"

    @classmethod
    def of(cls, caller: str = "all", /, **fields: object) -> Ask:
        return cls(json.dumps({"stageArn": stage_arn(), **fields}).encode(), {}, caller)


@dataclass
class Visitor:
    """A connection from both ends."""

    client: Connection
    protocol: BoundedHttpProtocol

    def feed(self, data: bytes) -> None:
        """Let what a client sends arrive now, before this returns."""
        self.protocol.data_received(data)

    @property
    def is_answered(self) -> bool:
        return self.protocol.cycle.response_complete


class Gate:
    """Commits wait here, and go on when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        store = LedgerWriter._store

        async def wait(writer: LedgerWriter, batch: Any) -> Any:
            self.reached.set()
            await self.open.wait()
            return await store(writer, batch)

        monkeypatch.setattr(LedgerWriter, "_store", wait)


class Crowd:
    """Clients of one server, and what comes of their requests."""

    def __init__(self, server: Listening, log: io.StringIO) -> None:
        self.server = server
        self.app: Edge = server.server.config.loaded_app
        self._log = log

    async def visit(self) -> Visitor:
        """Open a connection."""
        connections: Any = self.server.server.server_state.connections
        before = set(connections)
        client = await self.server.connect()
        await until(lambda: bool(set(connections) - before))
        (protocol,) = set(connections) - before
        return Visitor(client, protocol)

    async def visits(self, count: int) -> list[Visitor]:
        return [await self.visit() for _ in range(count)]

    def request(self, ask: Ask, number: int = 0) -> bytes:
        """Return the bytes of a request whose id tells its number."""
        given = {
            "host": b"x",
            "content-type": b"application/json",
            "x-request-id": b"r%d" % number,
            "authorization": self.server.service.authorization(ask.caller)[
                "authorization"
            ].encode(),
            **ask.headers,
        }
        lines = b"".join(b"%b: %b\r\n" % (name.encode(), v) for name, v in given.items() if v)
        length = b"Content-Length: %d\r\n\r\n" % len(ask.body)
        return b"POST /v1/tokens HTTP/1.1\r\n" + lines + length + ask.body

    async def arrive(self, *asks: Ask) -> list[Visitor]:
        """Let all of them arrive in one turn."""
        visitors = await self.visits(len(asks))
        for number, (visitor, ask) in enumerate(zip(visitors, asks, strict=True)):
            visitor.feed(self.request(ask, number))
        return visitors

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """Ask for something else; expect it to be done."""
        content = json.dumps(body).encode()
        request = self.request(Ask(content)).replace(b"/v1/tokens", path.encode(), 1)
        client = await self.server.connect()
        await client.say(request)
        status, _, answer = await client.answer()
        client.writer.close()
        assert status < 300, answer
        return answer

    async def lines(self) -> list[dict[str, Any]]:
        """Return what was logged, once the lines of this turn are written."""
        await asyncio.sleep(0)
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def users(self) -> list[str | None]:
        """Return whose rows the ledger has, in order."""
        return [row[0] for row in self.rows("user_id")]

    def rows(self, names: str) -> list[tuple[Any, ...]]:
        path = make_url(self.server.service.settings.database_url).database
        connection = sqlite3.connect(str(path))
        try:
            found = connection.execute(f"SELECT {names} FROM issued_tokens ORDER BY row_id")
            return found.fetchall()
        finally:
            connection.close()
