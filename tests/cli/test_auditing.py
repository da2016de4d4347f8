"""Commands that change something are in the audit record, with who ran them; those that read are not."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from tests.http.support import REGION, stage_arn
from tokensvc.cli.root import run


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOKENSVC_REGIONS", REGION)
    monkeypatch.setenv("TOKENSVC_AUDIT", str(tmp_path / "audit.log"))
    assert run(["db", "upgrade"]) == 0
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
