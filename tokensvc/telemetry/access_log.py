"""The access log: one line for each request, at a fraction of what a line costs elsewhere.

Every request writes one, always the same fields, so the line is put together here instead of walking
through structlog's processors. It is the line that they would write: the same names, the same order, the
same facts bound with `structlog.contextvars`. What looks like a secret, a level above info, or another
format than JSON goes through the processors, which redact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog
from structlog.contextvars import get_contextvars

from tokensvc.telemetry.logging import json_line_writer
from tokensvc.telemetry.redaction import may_hold_secret

__all__ = ["AccessLog"]

_NAME: Final = "tokensvc.http.access"
_EVENT: Final = "request"
_BOUND: Final = {"request_id", "worker"}
"""What may be bound, for the process or for a request; whatever else is bound, the processors look at."""

_encode = msgspec.json.Encoder().encode


class _Line(msgspec.Struct, frozen=True, gc=False):
    """The fields of a line in the order that the processors' renderer gives them: by name."""

    caller: str | None
    code: str | None
    event: str
    level: str
    logger: str
    method: str
    ms: float
    request_id: str
    route: str
    status: int
    time: datetime
    worker: int | msgspec.UnsetType


class AccessLog:
    """Writes lines as logging is configured when it is made; belongs to one event loop.

    `clock` gives the time of a line.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        # Bound once: finding out anew for each line how to log takes half as long as logging it.
        self._log = structlog.get_logger(_NAME).bind()
        self._write = json_line_writer(_NAME)
        self._clock = clock
        self._waiting: list[str] = []
        # What is bound for the whole process; requests bind nothing but their id.
        bound = get_contextvars()
        self._worker = bound.get("worker", msgspec.UNSET)
        self._is_usual = bound.keys() <= _BOUND

    def note(
        self,
        *,
        method: str,
        route: str,
        status: int,
        code: str | None,
        ms: float,
        caller: str | None,
        request_id: str,
        soon: bool = False,
    ) -> None:
        """Write the line of one request.

        With `soon` it is written after what the event loop has to do already, in one go with the
        lines of other requests that are answered in the same moment.
        """
        write = self._write
        line = ""
        if write is not None and self._is_usual:
            of = _Line(
                caller,
                code,
                _EVENT,
                "info",
                _NAME,
                method,
                ms,
                request_id,
                route,
                status,
                self._clock(),
                self._worker,
            )
            try:
                line = _encode(of).decode()
            except UnicodeEncodeError:
                line = ""  # A lone surrogate; the processors' renderer has an answer to it.
        if write is None or not line or may_hold_secret(line):
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                self._log.info(
                    _EVENT,
                    method=method,
                    route=route,
                    status=status,
                    code=code,
                    ms=ms,
                    caller=caller,
                )
        elif soon:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self.flush)
            self._waiting.append(line)
        else:
            self.flush()
            write(line)

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting and self._write is not None:
            lines = "\n".join(self._waiting)
            self._waiting.clear()
            self._write(lines)

    def exception(self, event: str) -> None:
        """Log an error with its traceback, through the processors."""
        self._log.exception(event)
