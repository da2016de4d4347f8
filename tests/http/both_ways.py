"""Sends a request by the short way or the long one, and sees everything that comes of it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
from typing import Any, NamedTuple

from sqlalchemy.engine import make_url

from tests.http.test_server import Listening
from tokensvc.http.edge import Edge
from tokensvc.telemetry.audit_sink import AuditSink

__all__ = ["BATCH", "MINT", "Seen", "Watcher", "without_fresh"]

FRESH = {"token", "participantId", "requestId"}
"""What no two answers have in common."""
MINT = b"/v1/tokens"
BATCH = b"/v1/tokens/batch"


class Seen(NamedTuple):
    """All that is to be seen of one request."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    lines: list[dict[str, Any]]
    counts: dict[str, float]
    rows: list[tuple[Any, ...]]
    audited: list[Any]


class Watcher:
    """Sends a request one way or the other and looks at everything that comes of it."""

    def __init__(self, server: Listening, log: io.StringIO) -> None:
        self.server = server
        self.log = log
        self.app: Edge = server.server.config.loaded_app
        self.short = 0
        begin = self.app.begin

        def counted(*arguments: Any) -> None:
            self.short += 1
            begin(*arguments)

        self.app.begin = counted  # type: ignore[method-assign]
        self._audited: list[Any] = []
        assert self.app.audit is not None
        audit = self.app.audit._audit
        minted = audit.minted

        def told(*arguments: Any) -> None:
            self._audited.append(arguments)
            minted(*arguments)

        audit.minted = told  # type: ignore[method-assign]

    async def see(
        self, body: bytes, headers: dict[str, bytes], *, short: bool, path: bytes = MINT
    ) -> Seen:
        given = {
            "host": b"x",
            "authorization": self.server.service.authorization()["authorization"].encode(),
            "content-type": b"application/json",
            "x-request-id": b"the-one",
            **headers,
        }
        lines = [b"%b: %b\r\n" % (n.title().encode(), v) for n, v in given.items() if v != b""]
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        head = b"POST %b HTTP/1.1\r\n" % path + b"".join(lines) + length
        connection = await self.server.connect()
        await self._records_written()
        counts, rows, taken = self._counts(), self._rows(), self.short
        self._audited.clear()
        self.log.seek(0)
        self.log.truncate()
        if short:
            await connection.say(head + body)
        else:
            await connection.say(head)
            # The head is read alone, so the body is waited for: that is the long way.
            while not any(c.cycle for c in self.connections()):  # noqa: ASYNC110
                await asyncio.sleep(0)
            await connection.say(body)
        status, answered, content = await connection.answer()
        await asyncio.sleep(0)
        assert (self.short > taken) is short
        connection.writer.close()
        while self.server.server.server_state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await self._records_written()
        answered.pop("date")
        answered.pop("content-length")
        return Seen(
            status,
            answered,
            without_fresh(content),
            [
                {name: value for name, value in json.loads(line).items() if name not in _TIMES}
                for line in self.log.getvalue().splitlines()
            ],
            {name: count - counts.get(name, 0) for name, count in self._counts().items()},
            self._rows()[len(rows) :],
            [*self._audited],
        )

    async def post(self, path: bytes, body: object) -> dict[str, Any]:
        """Ask for something that is not to be compared; expect it to be done."""
        done = await self.see(json.dumps(body).encode(), {}, short=False, path=path)
        assert done.status < 300, done.body
        return done.body

    def connections(self) -> list[Any]:
        return list(self.server.server.server_state.connections)

    async def _records_written(self) -> None:
        """Wait for the audit's thread: what it writes late would be counted with the next request."""
        assert self.app.audit is not None
        lines = self.app.audit._audit.lines
        # A line leaves the queue after it is counted.
        while isinstance(lines, AuditSink) and lines._waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)

    def _counts(self) -> dict[str, float]:
        text = self.app._metrics.render().decode()
        found = re.findall(
            r"^(tokensvc_\w*(?:_total|_count)(?:{[^}]*})?) (\S+)$", text, re.MULTILINE
        )
        return {name: float(count) for name, count in found}

    def _rows(self) -> list[tuple[Any, ...]]:
        path = make_url(self.server.service.settings.database_url).database
        connection = sqlite3.connect(str(path))
        try:
            names = (
                "kind, stage_arn, region, user_id, key_id, key_arn, caller_id, issuer, iat, exp,"
                " endpoints_id"
            )
            return connection.execute(
                f"SELECT {names} FROM issued_tokens ORDER BY row_id"
            ).fetchall()
        finally:
            connection.close()


_TIMES = {"ms", "time"}


def without_fresh(content: Any) -> Any:
    if isinstance(content, list):
        return [without_fresh(one) for one in content]
    if not isinstance(content, dict):
        return content
    return {name: without_fresh(value) for name, value in content.items() if name not in FRESH}
