"""Clients that go on asking until nobody listens any more, and notice what is not answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from tests.faults.asking import outcome, request_of
from tests.faults.processes import Serving
from tokensvc.http.server import LINGER_SECONDS

__all__ = ["Begun", "Load"]


class Wire:
    """One connection to the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, service: Serving) -> Wire:
        """Connect; raises ConnectionRefusedError."""
        url = httpx.URL(service.url)
        return cls(*await asyncio.open_connection(url.host, url.port))

    def send(self, data: bytes) -> None:
        """Send; that the other end is gone is found when its answer is read."""
        self._writer.write(data)

    async def answer(self) -> httpx.Response:
        """Read one answer; raises OSError or EOFError where none comes."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines if line])  # type: ignore[misc]
        body = await self._reader.readexactly(int(headers["content-length"]))
        return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)

    def close(self) -> None:
        self._writer.close()


def request_bytes(service: Serving, column: str) -> bytes:
    """Return what is sent for a column of the table."""
    method, path, body = request_of(column, service.installation.subject)
    content = b"" if body is None else json.dumps(body).encode()
    fields: Mapping[str, Any] = {
        "Host": "x",
        **service.authorization,
        **({} if body is None else {"Content-Type": "application/json"}),
        **({} if body is None else {"Content-Length": len(content)}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Begun:
    """A request of which the service has all but the last bytes."""

    def __init__(self, column: str, wire: Wire, rest: bytes) -> None:
        self._column = column
        self._wire = wire
        self._rest = rest

    @classmethod
    async def ask(cls, service: Serving, column: str) -> Begun:
        wire, request = await Wire.open(service), request_bytes(service, column)
        wire.send(request[:-2])
        return cls(column, wire, request[-2:])

    async def finish(self) -> str:
        """Send the rest, and say what came of it."""
        self._wire.send(self._rest)
        answer = await self._wire.answer()
        assert answer.headers["connection"] == "close"
        self._wire.close()
        return outcome(self._column, answer)


class Load:
    """Clients that ask for one column again and again: on one connection each, or on a new one each time."""

    def __init__(self, service: Serving, column: str, *, lasting: int, fresh: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.dropped: list[str] = []
        self._service = service
        self._column = column
        self._request = request_bytes(service, column)
        self._answered = asyncio.Condition()
        self._clients = [
            asyncio.create_task(self._ask_until_refused(keep=keep))
            for keep in [True] * lasting + [False] * fresh
        ]

    async def until_answered(self, times: int) -> None:
        """Wait until so many more answers have come."""
        wanted = self.outcomes.total() + times
        async with self._answered:
            await self._answered.wait_for(lambda: self.outcomes.total() >= wanted)

    async def until_refused(self) -> None:
        """Wait until every client was told that nobody listens."""
        await asyncio.gather(*self._clients)

    async def _ask_until_refused(self, *, keep: bool) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                wire, goes_on = await Wire.open(self._service), True
                since = clock()
                while goes_on:
                    # A client that was held up itself may find an idle connection closed.
                    in_time = clock() - since < LINGER_SECONDS / 2
                    wire.send(self._request)
                    try:
                        answer = await wire.answer()
                    except (OSError, EOFError) as error:
                        if in_time:
                            self.dropped.append(repr(error))
                        break
                    since = clock()
                    goes_on = keep and "connection" not in answer.headers
                    await self._note(outcome(self._column, answer))
                wire.close()

    async def _note(self, found: str) -> None:
        async with self._answered:
            self.outcomes[found] += 1
            self._answered.notify_all()
