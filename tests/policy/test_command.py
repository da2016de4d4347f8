"""Promise: `tokensvc policy check` says what a caller gets and which rule decides, before it asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.policy.support import POLICY, stage
from tokensvc.cli.root import run


@pytest.fixture(autouse=True)
def policy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setenv("TOKENSVC_POLICY_FILE", str(path))
    return path


def check(*options: str) -> int:
    return run(["policy", "check", *options])


LOBBY = ("--caller", "lobby", "--stage-arn", str(stage()), "--user-id", "ana")
HALL = ("--caller", "lobby", "--stage-arn", str(stage("hall")), "--user-id", "ana")


def test_an_allowed_request_is_shown_with_its_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(*LOBBY, "--role", "host", "--attribute", "team=red") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "lobby may have this token: callers.lobby.stages[0] (line 14)"
    assert "  ok     duration: 240 minutes [roles.host.duration (line 6)]" in shown
    assert "token: PUBLISH SUBSCRIBE, 240 minutes, issuer local" in shown


def test_a_denied_request_exits_with_3_and_names_the_rule(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(*LOBBY, "--duration", "61", "--attribute", "team=red") == 3
    shown = capsys.readouterr().out
    assert "lobby is denied this token: roles.viewer.duration (line 10)" in shown
    assert "DENIED duration: is 61 minutes; allowed are 1 to 60" in shown
    assert check("--caller", "nobody", "--stage-arn", str(stage())) == 3
    assert "no rule for the caller nobody" in capsys.readouterr().out


def test_tags_given_on_the_command_line_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(*HALL, "--attribute", "team=a", "--tag", "tenant=acme", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["allowed"] is True
    assert answer["token"]["capabilities"] == ["SUBSCRIBE"]
    assert answer["findings"][0] == {
        "field": "stageArn",
        "allowed": True,
        "detail": "fits tenant=acme",
        "rule": "callers.lobby.stages[1]",
        "line": 15,
    }
    assert answer["limits"] == {"tokensPerSecond": 2.0, "burst": 3, "perUserPerMinute": 2}
    assert check(*HALL, "--attribute", "team=a", "--tag", "tenant=evil", "--json") == 3
    answer = json.loads(capsys.readouterr().out)
    assert (answer["allowed"], answer["token"]) == (False, None)


def test_without_a_caller_the_file_is_checked(
    policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check() == 0
    assert capsys.readouterr().out == "sound; callers: lobby, plain, strict\n"
    policy_file.write_text("version: 7\ncallers: []\n")
    assert check() == 1
    assert capsys.readouterr().err.splitlines() == [
        "tokensvc: policy.yaml: line 1: version: is 7; this program reads version 1",
        "tokensvc: policy.yaml: line 2: callers: must be a mapping, not a list",
    ]


def test_without_a_file_scopes_decide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOKENSVC_POLICY_FILE")
    assert check("--json") == 0
    assert json.loads(capsys.readouterr().out) == {"open": True, "callers": []}
    assert check("--caller", "x", "--stage-arn", str(stage())) == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--stage-arn", str(stage())),
        ("--tag", "a=b"),
        ("--caller", "lobby"),
        (*LOBBY, "--attribute", "team"),
    ],
)
def test_a_wrong_call_exits_with_2(options: tuple[str, ...]) -> None:
    assert check(*options) == 2


def test_a_request_that_is_none_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--caller", "lobby", "--stage-arn", "x") == 1
    assert "stageArn" in capsys.readouterr().err
