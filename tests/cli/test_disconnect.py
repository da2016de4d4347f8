"""Kicks and bans from the command line are those of the service: stored, whole, and told."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from tokensvc.cli.root import run
from tokensvc.store import upgrade

STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/stage1"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOKENSVC_REGIONS", "eu-central-1")
    upgrade(f"sqlite+aiosqlite:///{tmp_path / 'tokensvc.db'}")
    return tmp_path / "tokensvc.db"


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(query).fetchall()


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def disconnect(*options: str) -> int:
    return run(["disconnect", "--stage-arn", STAGE, *options])


def test_a_user_is_stored_with_reason_and_ban(database: Path, capsys: pytest.CaptureFixture[str]):
    assert disconnect("--user-id", "ana", "--reason", "insults", "--ban", "30m", "--json") == 0
    answer = printed(capsys)
    stored = rows(database, "SELECT disconnect_id, kind, user_id, reason, ban_id FROM disconnects")
    assert stored == [(answer["disconnectId"], "user", "ana", "insults", answer["banId"])]
    (ban,) = rows(database, "SELECT kind, stage_arn, user_id, until - created_at FROM bans")
    assert ban[:3] == ("user_on_stage", STAGE, "ana")
    assert ban[3] == pytest.approx(1800)


def test_a_ban_for_good(database: Path):
    assert disconnect("--participant-id", "p1", "--ban-for-good") == 0
    assert rows(database, "SELECT kind, participant_id, until FROM bans") == [
        ("participant", "p1", None)
    ]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 1, "everybody"),
        (("--user-id", "ana", "--participant-id", "p1"), 1, "userId"),
        (("--user-id", "ana", "--reason", "r" * 129), 1, "IVS allows 128"),
        (("--user-id", "ana", "--ban", "5m", "--ban-for-good"), 2, "exclude"),
        (("--user-id", "ana", "--ban", "0s"), 2, "--ban-for-good"),
        (("--user-id", "ana", "--ban", "soon"), 2, "length of time"),
    ],
)
def test_what_is_not_clear_is_refused_and_nothing_is_stored(
    database: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    says: str,
):
    assert disconnect(*options) == code
    assert says in capsys.readouterr().err
    assert rows(database, "SELECT * FROM disconnects") == []
    assert rows(database, "SELECT * FROM bans") == []


def test_waiting_ends_with_3_where_nobody_does_it(
    database: Path, capsys: pytest.CaptureFixture[str]
):
    assert disconnect("--participant-id", "p1", "--wait", "--timeout", "0s", "--json") == 3
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert (answer["done"], answer["counts"]["pending"]) == (False, 1)
    assert "is a service running?" in shown.err
    assert len(rows(database, "SELECT * FROM disconnect_calls")) == 1


@pytest.mark.parametrize(("state", "code"), [("disconnected", 0), ("failed", 1)])
def test_waiting_ends_when_it_is_done(
    database: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    code: int,
):
    async def service_works_meanwhile(seconds: float) -> None:
        assert seconds > 0
        rows(database, f"UPDATE disconnect_calls SET state = '{state}', attempts = 1")

    monkeypatch.setattr(asyncio, "sleep", service_works_meanwhile)
    assert disconnect("--participant-id", "p1", "--wait") == code
    shown = capsys.readouterr()
    assert [word for word in shown.out.splitlines()[1].split() if word] == ["p1", state, "1", "-"]
    assert shown.err.splitlines()[1:] == ["1 pending", f"1 {state}"]


def test_bans_are_added_listed_and_lifted(capsys: pytest.CaptureFixture[str]):
    assert run(["bans", "add", "--user-id", "ana", "--for", "2h", "--json"]) == 0
    (everywhere,) = printed(capsys)["bans"]
    assert everywhere["kind"] == "user"
    for options in (("--user-id", "ana"), ("--everybody",)):
        assert run(["bans", "add", "--stage-arn", STAGE, *options, "--json"]) == 0
    capsys.readouterr()
    assert run(["bans", "list", "--json"]) == 0
    assert {ban["kind"] for ban in printed(capsys)["bans"]} == {"user", "user_on_stage", "stage"}
    assert run(["bans", "list", "--stage-arn", STAGE, "--user-id", "ana"]) == 0
    assert "'ana'" in capsys.readouterr().out
    assert run(["bans", "lift", everywhere["banId"]]) == 0
    assert run(["bans", "lift", "--stage-arn", STAGE, "--everybody"]) == 0
    capsys.readouterr()
    assert run(["bans", "list", "--json"]) == 0
    assert [ban["kind"] for ban in printed(capsys)["bans"]] == ["user_on_stage"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("add",), 1),
        (("add", "--stage-arn", STAGE), 1),
        (("add", "--user-id", "ana", "--for", "0s"), 2),
        (("lift",), 1),
        (("lift", "ban-unknown"), 1),
        (("lift", "ban-unknown", "--user-id", "ana"), 2),
    ],
)
def test_bans_that_are_not_clear_are_refused(database: Path, arguments: tuple[str, ...], code: int):
    assert run(["bans", *arguments]) == code
    assert rows(database, "SELECT * FROM bans") == []


def test_exit_codes_are_told(capsys: pytest.CaptureFixture[str]):
    assert run(["disconnect", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit code 0: stored" in text
    assert "3: stored, and not done within --timeout" in text


def test_a_name_that_would_drive_the_terminal_is_escaped(capsys: pytest.CaptureFixture[str]):
    assert run(["bans", "add", "--user-id", "\x1b[2Jana"]) == 0
    assert run(["bans", "list"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b[2Jana" in shown
