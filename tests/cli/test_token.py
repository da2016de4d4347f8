"""`tokensvc token inspect` prints what a stranger wrote, and is not driven by it."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from tests.http.support import stage_arn
from tokensvc.cli.root import run


def segment(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


CLEAR = "\x1b[2J\x9b2J\x7f\u202e"


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({f"alg{CLEAR}": "ES384"}, {"resource": stage_arn(), f"x{CLEAR}": f"y{CLEAR}"}),
        ({"alg": CLEAR}, {"resource": stage_arn(), "capabilities": {CLEAR: True}}),
        ({"alg": "ES384"}, {"account_id": CLEAR, "region": CLEAR}),
    ],
)
def test_a_token_does_not_drive_the_terminal(
    header: object,
    claims: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    token = f"{segment(header)}.{segment(claims)}.x"
    assert run(["token", "inspect", "--against", "nothing", token]) == 1
    shown = capsys.readouterr().out
    assert "\\x1b[2J" in shown or "\\u001b[2J" in shown
    assert "header:\n" in shown
    assert all(char.isprintable() for char in shown.replace("\n", ""))
