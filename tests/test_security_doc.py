"""`docs/security.md` promises tests: each one that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(
    r"`(tests/[a-z0-9_/]+\.py)::([a-z0-9_]+)`", (ROOT / "docs/security.md").read_text("utf-8")
)


def test_answers_name_their_tests():
    rows = [
        line
        for line in (ROOT / "docs/security.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| threat ")
    ]
    assert len(rows) > 25
    assert [row for row in rows if "`tests/" not in row] == []


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_is_named_is_there(path: str, name: str):
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
