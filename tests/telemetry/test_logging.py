"""Log lines are JSON objects, ours and the libraries' alike, with time, level and request id."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timedelta

import pytest
import structlog

from tokensvc.telemetry.logging import configure_logging


def _lines(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_our_events_and_a_librarys_have_the_same_shape() -> None:
    output = io.StringIO()
    configure_logging(stream=output)
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("tokensvc.http").info("request", status=201)
        logging.getLogger("uvicorn.error").warning("slow %s", "client")
    ours, library = _lines(output)
    assert ours["event"] == "request"
    assert ours["status"] == 201
    assert ours["logger"] == "tokensvc.http"
    assert library["event"] == "slow client"
    assert library["logger"] == "uvicorn.error"
    assert library["level"] == "warning"
    for line in (ours, library):
        assert line["request_id"] == "r-1"
        assert datetime.fromisoformat(str(line["time"])).utcoffset() == timedelta(0)


def test_lines_below_the_level_and_chatty_libraries_are_left_out() -> None:
    output = io.StringIO()
    configure_logging("warning", stream=output)
    structlog.get_logger("x").info("quiet")
    logging.getLogger("x").info("quiet")
    configure_logging("debug", stream=output)
    logging.getLogger("botocore.endpoint").debug("a whole request")
    assert output.getvalue() == ""


def _fail(hidden: str) -> None:
    raise KeyError(len(hidden))


def test_a_traceback_is_one_field_without_local_variables() -> None:
    output = io.StringIO()
    configure_logging(stream=output)
    hidden = "-".join(["value", "of", "a", "local"])
    try:
        _fail(hidden)
    except KeyError:
        structlog.get_logger("x").exception("failed")
    (line,) = _lines(output)
    assert "KeyError" in str(line["exception"])
    assert hidden not in output.getvalue()


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "\ud800", "\u2028"])
def test_no_text_can_forge_a_second_line_or_stop_the_logger(text: str) -> None:
    output = io.StringIO()
    configure_logging(stream=output)
    structlog.get_logger("x").info("event", text=text)
    assert output.getvalue().count("\n") == 1
    assert json.loads(output.getvalue())
    assert "\x1b" not in output.getvalue()
