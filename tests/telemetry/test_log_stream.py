"""A log that cannot be written fails nobody, and says afterwards what it lacks."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from pathlib import Path

import pytest
import structlog

from tokensvc.telemetry.log_stream import LogStream
from tokensvc.telemetry.logging import configure_logging, log_stream


class Disk(io.StringIO):
    """A stream in memory that is full as long as a test says so."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_that_find_no_room_are_lost_and_told_by_the_next_one():
    disk = Disk()
    configure_logging(stream=disk)
    disk.full = True
    structlog.get_logger("a").info("ours")
    logging.getLogger("b").warning("a library's")
    lines = log_stream()
    assert lines is not None
    assert (lines.lost, lines.failing) == (2, "No space left on device")
    disk.full = False
    structlog.get_logger("a").info("written")
    structlog.get_logger("a").info("again")
    told, *others = map(json.loads, disk.getvalue().splitlines())
    assert (told["event"], told["count"], told["level"]) == ("log_lines_lost", 2, "error")
    assert [line["event"] for line in others] == ["written", "again"]
    assert (lines.lost, lines.failing) == (2, None)


def test_a_reader_that_is_gone_fails_nobody():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        lines = LogStream(stream, str)
        lines.write("lost\n")
    assert (lines.lost, lines.failing) == (1, "Broken pipe")


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    room = 6
    write = os.write

    def write_what_fits(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    path = tmp_path / "log"
    with path.open("w") as stream:
        lines = LogStream(stream, lambda count: f"{count} lost")
        lines.write("first line\n")
        lines.write("second line\n")
        room = 1000
        lines.write("third line\n")
    assert path.read_text() == "first \n2 lost\nthird line\n"
