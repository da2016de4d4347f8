"""Audit records: appended whole, bounded while they wait, and nothing in them that is a secret."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.contextvars import bound_contextvars

from tokensvc.errors import AuditUnavailableError, ConfigurationError
from tokensvc.telemetry.audit import MAX_GROUPS, Audit, MintGroup, hashed_user_ids
from tokensvc.telemetry.audit_sink import AuditSink
from tokensvc.telemetry.logging import configure_logging

NOW = 1_790_000_000.5
JWT = "eyJhbGciOiJFUzM4NCJ9.eyJqdGkiOiJwIn0.c2lnbmF0dXJl"


class Kept:
    """Lines, as a sink would have written them."""

    def __init__(self) -> None:
        self.written = self.dropped = 0
        self.failing: str | None = None
        self.lines: list[dict[str, Any]] = []

    def put(self, line: bytes) -> None:
        assert b"\n" not in line
        self.lines.append(json.loads(line))


def audit_to(kept: Kept, **options: Any) -> Audit:
    return Audit(kept, clock=lambda: NOW, **options)


def test_an_action_says_who_what_and_with_what_outcome():
    kept = Kept()
    audit = audit_to(kept, user_ids=hashed_user_ids(b"k" * 32))
    with bound_contextvars(request_id="r1"):
        audit.action("ban.add", who="0caller", user_id="ana", stageArn="arn", until=None)
    audit.action("ban.add", who=None, outcome="unauthenticated")
    first, second = kept.lines
    assert first == {
        "time": "2026-09-21T14:13:20.500+00:00",
        "action": "ban.add",
        "who": "0caller",
        "via": "service",
        "outcome": "done",
        "stageArn": "arn",
        "userId": first["userId"],
        "requestId": "r1",
        "process": second["process"],
        "seq": 1,
    }
    assert first["userId"].startswith("hmac:")
    assert "ana" not in first["userId"]
    assert (second["who"], second["outcome"], second["seq"]) == (None, "unauthenticated", 2)


def test_the_same_user_hashes_alike_under_one_key_only():
    one, other = hashed_user_ids(b"1" * 32), hashed_user_ids(b"2" * 32)
    assert one("ana") == one("ana")
    assert len({one("ana"), one("bob"), other("ana")}) == 3
    assert one("\ud800")


def test_plain_user_ids_where_the_operator_wants_them():
    kept = Kept()
    audit_to(kept).action("ban.add", who="0caller", user_id="ana")
    assert kept.lines[0]["userId"] == "ana"


@pytest.mark.parametrize("text", [JWT, "tsk_0caller_" + "s" * 43, f"x {JWT} y"])
def test_a_secret_in_what_a_caller_wrote_is_not_recorded(text: str):
    kept = Kept()
    audit_to(kept).action("ban.add", who="0caller", reason=text, options={"reason": [text]})
    assert text not in json.dumps(kept.lines)
    assert "[redacted]" in json.dumps(kept.lines)


def test_a_lone_surrogate_does_not_cost_the_record():
    kept = Kept()
    audit_to(kept).action("ban.add", who="0caller", reason=f"\ud800 {JWT}", token="s3cret")
    assert kept.lines[0]["reason"] == "'\\ud800 [redacted]'"
    assert kept.lines[0]["token"] == "'[redacted]'"


GROUP = MintGroup("token.mint", "0caller", "arn:stage", "arn:key", "done")


def test_mints_are_told_in_summary():
    kept = Kept()
    audit = audit_to(kept)
    for _ in range(3):
        audit.minted(GROUP)
    audit.minted(replace(GROUP, outcome="banned"), 2)
    assert kept.lines == []
    audit.tell_mints()
    assert [(line["outcome"], line["count"]) for line in kept.lines] == [("done", 3), ("banned", 2)]
    assert kept.lines[0]["stageArn"] == "arn:stage"
    assert kept.lines[0]["keyArn"] == "arn:key"
    assert kept.lines[0]["since"] == "2026-09-21T14:13:20.500+00:00"
    audit.tell_mints()
    assert len(kept.lines) == 2


def test_groups_of_mints_are_bounded():
    kept = Kept()
    audit = audit_to(kept)
    for number in range(MAX_GROUPS):
        audit.minted(replace(GROUP, stage_arn=f"arn:{number}"))
    assert len(kept.lines) == MAX_GROUPS


def test_nothing_is_recorded_or_refused_without_a_sink():
    audit = Audit(None, clock=lambda: NOW, required=True)
    audit.action("ban.add", who="0caller", user_id="ana")
    audit.minted(GROUP)
    audit.tell_mints()
    audit.check()
    assert not audit.required


def test_what_must_be_recorded_and_cannot_be_is_refused():
    kept = Kept()
    lenient, strict = audit_to(kept), audit_to(kept, required=True)
    strict.check()
    kept.failing = "No space left on device"
    lenient.check()
    with pytest.raises(AuditUnavailableError) as raised:
        strict.check()
    assert raised.value.retry_after
    assert "No space" not in raised.value.detail


# --- the sink -------------------------------------------------------------------------------------


def lost(count: int) -> bytes:
    return b"lost %d" % count


def opened(path: Path | str, **options: Any) -> AuditSink:
    sink = AuditSink(str(path), lost=lost, **options)
    sink.start()
    return sink


def test_lines_are_appended_and_flushed_at_the_close(tmp_path: Path):
    path = tmp_path / "audit.log"
    path.write_bytes(b"before\n")
    sink = opened(path)
    for number in range(1000):
        sink.put(b"%d" % number)
    sink.close()
    assert path.read_bytes().splitlines() == [b"before", *(b"%d" % n for n in range(1000))]
    assert (sink.written, sink.dropped, sink.failing) == (1000, 0, None)


def test_a_new_file_is_its_owners_alone(tmp_path: Path):
    opened(tmp_path / "audit.log").close()
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot be opened: Is a directory"):
        opened(tmp_path)


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path):
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    sink = opened(path)
    sink.put(b"first")
    wait_for(lambda: sink.written == 1)
    path.rename(moved)
    sink.put(b"second")
    sink.close()
    assert moved.read_bytes() == b"first\n"
    assert path.read_bytes() == b"second\n"


def wait_for(condition: Callable[[], bool]) -> None:
    beat = threading.Event()
    for _ in range(2000):
        if condition():
            return
        beat.wait(0.005)
    raise AssertionError("it did not come to that")


class Disk:
    """`os.write`, which fails while the disk is full, and may write less than it was asked to."""

    def __init__(self) -> None:
        self.full = True
        self.most = self.room = 10**9
        self.tries = 0

    def write(self, descriptor: int, data: bytes) -> int:
        self.tries += 1
        if self.full or not self.room:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, bytes(data)[: min(self.most, self.room)])
        self.room -= written
        return written


real_write = os.write


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("tokensvc.telemetry.audit_sink.os.write", disk.write)
    return disk


def test_a_full_disk_is_told_counted_and_outlived(tmp_path: Path, disk: Disk):
    log = io.StringIO()
    configure_logging("info", "json", log)
    sink = opened(tmp_path / "audit.log", capacity=3, retry_seconds=0.001)
    sink.put(b"0")
    wait_for(lambda: disk.tries >= 3)
    assert sink.failing == "No space left on device"
    for number in range(1, 6):
        sink.put(b"%d" % number)
    assert sink.dropped == 3
    disk.full = False
    wait_for(lambda: sink.failing is None and sink.written == 3)
    sink.close()
    lines = (tmp_path / "audit.log").read_bytes().splitlines()
    assert lines == [b"0", b"1", b"2", b"lost 3"]
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == ["audit_not_written", "audit_written_again"]


def test_a_write_that_is_cut_short_goes_on_where_it_stopped(tmp_path: Path, disk: Disk):
    disk.full, disk.most = False, 2
    sink = opened(tmp_path / "audit.log")
    sink.put(b"abcdefg")
    sink.close()
    assert (tmp_path / "audit.log").read_bytes() == b"abcdefg\n"


def test_a_line_that_a_full_disk_cut_off_is_written_whole_on_a_line_of_its_own(
    tmp_path: Path, disk: Disk
):
    disk.full, disk.most, disk.room = False, 2, 4
    sink = opened(tmp_path / "audit.log", retry_seconds=0.001)
    sink.put(b"abcdefg")
    wait_for(lambda: sink.failing is not None)
    disk.room = 100
    sink.put(b"next")
    sink.close()
    assert (tmp_path / "audit.log").read_bytes() == b"abcd\nabcdefg\nnext\n"


def test_a_close_with_a_full_disk_ends_and_counts_what_is_lost(tmp_path: Path, disk: Disk):
    log = io.StringIO()
    configure_logging("info", "json", log)
    sink = opened(tmp_path / "audit.log", retry_seconds=0.001)
    for _ in range(4):
        sink.put(b"x")
    sink.close()
    assert sink.dropped == 4
    assert "audit_records_lost" in log.getvalue()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_standard_streams(stream: str, capfdbinary: pytest.CaptureFixture[bytes]):
    sink = opened(stream)
    sink.put(b"{}")
    sink.close()
    told = capfdbinary.readouterr()
    assert (told.out, told.err) == ((b"{}\n", b"") if stream == "stdout" else (b"", b"{}\n"))
