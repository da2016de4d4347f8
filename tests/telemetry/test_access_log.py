"""The access log's short cut writes the lines that structlog's processors would."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tokensvc.telemetry.access_log import AccessLog
from tokensvc.telemetry.logging import configure_logging

FACTS: dict[str, Any] = {
    "method": "POST",
    "route": "/v1/tokens",
    "status": 201,
    "code": None,
    "ms": 1.5,
    "caller": "abc123",
}
NOTED = {**FACTS, "request_id": "r-1"}


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = before


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("bound", "facts"),
    [
        ({}, {}),
        ({}, {"caller": None, "code": "banned", "status": 403}),
        ({"worker": 3}, {}),
        ({}, {"request_id": "eyJhbGciOiJ.eyJleHAiOj.c2ln"}),
        ({}, {"request_id": "tsk_abc"}),
        ({"password": "hunter2"}, {}),
        ({}, {"caller": "J\u00f6rg \u65e5\u672c"}),
        ({}, {"caller": "lone \ud800"}),
    ],
)
def test_a_line_is_the_one_of_the_processors(
    stream: io.StringIO, bound: dict[str, Any], facts: dict[str, Any]
):
    structlog.contextvars.bind_contextvars(**bound)
    noted = {**NOTED, **facts}
    structlog.get_logger("tokensvc.http.access").info("request", **noted)
    AccessLog().note(**noted)
    first, second = stream.getvalue().splitlines()
    # The same fields in the same order; only the time goes on.
    one, other = json.loads(first), json.loads(second)
    assert len(one.pop("time")) == len(other.pop("time"))
    assert list(one.items()) == list(other.items())
    assert "hunter2" not in second
    assert "tsk_abc" not in second
    assert "eyJhbGci" not in second


async def test_lines_that_wait_are_written_in_the_next_turn_and_in_order(stream: io.StringIO):
    log = AccessLog()
    for status in (1, 2):
        log.note(soon=True, **{**NOTED, "status": status})
    assert stream.getvalue() == ""
    await asyncio.sleep(0)
    log.note(soon=True, **{**NOTED, "status": 3})
    log.note(**{**NOTED, "status": 4})
    assert [line["status"] for line in lines(stream)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("level", "log_format"), [("warning", "json"), ("info", "console")])
def test_other_levels_and_formats_are_kept(stream: io.StringIO, level: str, log_format: str):
    configure_logging(level, log_format, stream)
    AccessLog().note(**NOTED)
    if level == "warning":
        assert stream.getvalue() == ""
    else:
        assert "status=201" in stream.getvalue()


def test_who_captures_logs_gets_the_line(stream: io.StringIO):
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as captured:
        AccessLog().note(**NOTED)
    assert captured == [{"event": "request", "log_level": "info", **NOTED}]
