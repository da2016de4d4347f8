"""Logging: one JSON object a line on standard error, for our events and for the libraries' alike.

structlog renders ours; the standard library's loggers (uvicorn, asyncio, botocore, SQLAlchemy) go
through the same processors and the same renderer. Facts bound with `structlog.contextvars`, such as
the request id, appear on every line logged while they are bound. The last processor redacts.
Tracebacks are plain text and never show local variables, where keys and tokens live.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.typing import Processor

from tokensvc.telemetry.log_stream import LogStream
from tokensvc.telemetry.redaction import redact_event

__all__ = ["configure_logging", "json_line_writer", "log_stream"]

_QUIET: Final = (
    "aiosqlite",
    "alembic.runtime.plugins",
    "asyncio",
    "boto3",
    "botocore",
    "s3transfer",
    "urllib3",
)
"""Libraries whose lower levels describe whole requests, or themselves: warnings and worse only."""

_encode = msgspec.json.Encoder(order="deterministic").encode


def configure_logging(
    level: str = "info", log_format: str = "json", stream: TextIO | None = None
) -> None:
    """Set up logging for this process; may be called again, the last call wins.

    `level` is debug, info, warning or error; `log_format` is json or console; `stream` is standard
    error where None.
    """
    lines = LogStream(
        sys.stderr if stream is None else stream, told=lambda count: _tell_lost(count, log_format)
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            *_enrichment(),
            structlog.processors.format_exc_info,
            redact_event,
            _renderer(log_format),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_NamedLoggers(lines, says_info=threshold <= logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_enrichment()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact_event,
                _renderer(log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def json_line_writer(name: str) -> Callable[[str], None] | None:
    """Return what writes finished lines of the logger `name` where they are JSON and info is logged.

    None where lines of that logger are to go through the processors, as now configured: they are
    rendered otherwise, dropped, or looked at by somebody else.
    """
    config = structlog.get_config()
    factory, last = config["logger_factory"], config["processors"][-1]
    if isinstance(factory, _NamedLoggers) and factory.says_info and last is _render_json:
        return factory(name).msg
    return None


def log_stream() -> LogStream | None:
    """Return where this process's lines go; None where `configure_logging` was not called."""
    factory = structlog.get_config()["logger_factory"]
    return factory.lines if isinstance(factory, _NamedLoggers) else None


class _NamedLine(structlog.WriteLogger):
    """Writes lines, and knows the name that `get_logger` was given."""

    def __init__(self, lines: LogStream, name: str | None) -> None:
        super().__init__(cast("TextIO", lines))
        self.name = name


class _NamedLoggers:
    def __init__(self, lines: LogStream, *, says_info: bool) -> None:
        self.lines = lines
        self.says_info = says_info

    def __call__(self, *args: Any) -> _NamedLine:
        return _NamedLine(self.lines, args[0] if args else None)


def _enrichment() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]


def _add_name(logger: Any, _method: str, event: structlog.typing.EventDict) -> Any:
    name = getattr(logger, "name", None)
    if name is not None:
        event.setdefault("logger", name)
    return event


def _tell_lost(count: int, log_format: str) -> str:
    event = {
        "event": "log_lines_lost",
        "count": count,
        "level": "error",
        "logger": __name__,
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    return str(_renderer(log_format)(None, "error", event))


def _renderer(log_format: str) -> Processor:
    if log_format == "console":
        return structlog.dev.ConsoleRenderer(colors=False)
    return _render_json


def _render_json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    # A lone surrogate would make the encoder raise, and a log line must not fail its caller.
    try:
        return _encode(event).decode("utf-8")
    except UnicodeEncodeError:
        return _encode({name: repr(value) for name, value in event.items()}).decode("utf-8")
