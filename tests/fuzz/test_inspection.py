"""What must hold of inspection holds for the inputs kept; and where it does not, that is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import inspection
from tests.fuzz.inspection import CORPUS, look_into, token_of
from tokensvc.tokens import claim_rules
from tokensvc.tokens.finding import Finding
from tokensvc.tokens.inspect import Inspection, inspect_token

SEEDS = sorted(CORPUS.iterdir())
INSPECT = inspect_token


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_what_was_kept_is_inspected(seed: Path):
    look_into(seed.read_bytes())


def seed(name: str) -> bytes:
    return (CORPUS / name).read_bytes()


def test_the_inputs_reach_what_is_behind_the_signature():
    for name in ("participant", "connection"):
        found = INSPECT(
            token_of(seed(name)), now=inspection.NOW, public_key_for=lambda _: inspection.PEM
        )
        assert found.acceptable
        assert found.findings == ()
        assert found.kind == name


def fails(text: str, *_: Any, **__: Any) -> Inspection:
    raise OverflowError


def takes_anything(*given: Any, **named: Any) -> Inspection:
    return replace(INSPECT(*given, **named), signature="valid", findings=())


def takes_nothing(*given: Any, **named: Any) -> Inspection:
    return replace(INSPECT(*given, **named), findings=(Finding("no", "", "no"),))


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (fails, "no-token"),
        (takes_anything, "unsigned"),
        (takes_nothing, "participant"),
    ],
)
def test_what_does_not_hold_is_noticed(
    broken: Callable[..., Inspection], name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inspection, "inspect_token", broken)
    monkeypatch.setattr("tokensvc.http.inspection.inspect_token", broken)
    with pytest.raises((AssertionError, OverflowError)):
        look_into(seed(name))


def test_a_rule_that_is_missing_is_noticed(monkeypatch: pytest.MonkeyPatch):
    header, payload = seed("participant").split(b"\n", 1)
    changed = header + b"\n" + payload.replace(b'"topic":"LSC8P4Bq1vGb"', b'"topic":"other"')
    look_into(changed)
    monkeypatch.setattr(claim_rules, "_check_stage", lambda *_: None)
    with pytest.raises(AssertionError, match="TOKEN_INVALID"):
        look_into(changed)


def test_what_would_drive_the_terminal_is_noticed(monkeypatch: pytest.MonkeyPatch):
    claims = b'u{}\n{"\\u009b2J":1}\nx'
    look_into(claims)
    monkeypatch.setattr("tokensvc.cli.token.printable", str)
    with pytest.raises(AssertionError, match="terminal"):
        look_into(claims)
