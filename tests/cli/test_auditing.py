"""Commands that change something are in the audit record, with who ran them; those that read are not."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.http.support import REGION, stage_arn
from tokensvc.cli.root import run


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOKENSVC_REGIONS", REGION)
    assert run(["db", "upgrade"]) == 0
    monkeypatch.setenv("TOKENSVC_AUDIT", str(tmp_path / "audit.log"))
    return tmp_path / "audit.log"


def told(audit: Path) -> list[dict[str, Any]]:
    if not audit.exists():
        return []
    return [json.loads(line) for line in audit.read_text().splitlines()]


def test_commands_are_recorded_with_their_outcome(audit: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["callers", "add", "game"]) == 0
    api_key = capsys.readouterr().out.split()[-1]
    assert run(["callers", "revoke", "nobody"]) == 1
    assert run(["bans", "add", "--user-id", "ana", "--stage-arn", stage_arn()]) == 0
    assert run(["callers", "list"]) == 0
    added, refused, banned = told(audit)
    assert added["action"] == "command.callers.add"
    assert added["who"] == f"os:{getpass.getuser()}"
    assert (added["via"], added["outcome"]) == ("command line", "done")
    assert added["options"]["name"] == "game"
    assert refused["outcome"] == "not_found"
    assert banned["userId"].startswith("hmac:")
    assert banned["options"]["stage_arn"] == stage_arn()
    # What was asked for, in full: that the old secret ends at once is no default.
    assert run(["callers", "rotate", "game", "--overlap", "0s"]) == 0
    assert told(audit)[-1]["options"] == {"caller": "game", "overlap": 0}
    text = audit.read_text()
    assert api_key.startswith("tsk_")
    assert api_key not in text
    assert "ana" not in text


def test_a_schema_that_is_brought_up_to_date_is_recorded(audit: Path):
    assert run(["db", "upgrade"]) == 0
    (record,) = told(audit)
    assert (record["action"], record["outcome"]) == ("command.db.upgrade", "done")


def test_what_a_command_prints_is_not_mixed_with_its_record(
    audit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOKENSVC_AUDIT", "stdout")
    assert run(["callers", "add", "game", "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["name"] == "game"
    assert json.loads(printed.err.splitlines()[-1])["action"] == "command.callers.add"
    assert told(audit) == []


def test_a_command_that_cannot_be_recorded_does_nothing(
    audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOKENSVC_AUDIT", str(audit.parent))
    assert run(["callers", "add", "game"]) == 1
    assert "audit file" in capsys.readouterr().err
    monkeypatch.delenv("TOKENSVC_AUDIT")
    assert run(["callers", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["callers"] == []


def test_what_must_be_recorded_is_recorded_before_it_is_done(
    audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOKENSVC_AUDIT_REQUIRED", "true")
    assert run(["callers", "add", "game"]) == 0
    assert run(["callers", "list"]) == 0
    begun, done = told(audit)
    assert (begun["outcome"], done["outcome"]) == ("begun", "done")
    assert begun["options"] == done["options"]
    monkeypatch.setenv("TOKENSVC_AUDIT", "/dev/full")
    assert run(["callers", "add", "other"]) == 1
    assert "cannot be recorded now (TOKENSVC_AUDIT_REQUIRED)" in capsys.readouterr().err
    assert run(["callers", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["callers"]] == ["game"]


def test_a_command_that_is_ended_is_recorded(audit: Path, monkeypatch: pytest.MonkeyPatch):
    async def never(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr("tokensvc.callers.SqlCallerStore.add", never)
    with pytest.raises(SystemExit) as caught:
        run(["callers", "add", "game"])
    assert caught.value.code == 128 + signal.SIGTERM
    (record,) = told(audit)
    assert (record["action"], record["outcome"]) == ("command.callers.add", "interrupted")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
