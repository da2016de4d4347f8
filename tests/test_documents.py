"""What the documentation points at is there: files, targets of make, commands of the command line."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tokensvc.cli.root import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "keys/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
TARGET = re.compile(r"^make ([a-z-]+)$|`make ([a-z-]+)[^`]*`", re.MULTILINE)
COMMAND = re.compile(r"(?:^|`|\.venv/bin/)tokensvc ([a-z][a-z |-]*)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {one or other for one, other in TARGET.findall((ROOT / document).read_text("utf-8"))}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document: str) -> None:
    named = set(COMMAND.findall((ROOT / document).read_text("utf-8")))
    assert [words for words in named if not exists(words)] == []


def exists(words: str) -> bool:
    """Tell whether `words` begin with a command; of `a|b`, whether both are."""
    command: click.Command | None = cli
    for word in words.split():
        if not isinstance(command, click.Group):
            return True
        found = [command.commands.get(name) for name in word.split("|")]
        if None in found:
            return False
        command = found[0]
    return True


def test_something_is_looked_at() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert {"run", "test"} <= {one or other for one, other in TARGET.findall(readme)}
    assert {"keys list", "serve"} <= {words.strip() for words in COMMAND.findall(readme)}
    assert "docs/runbook.md" in LINK.findall(readme)
    assert exists("token mint|inspect")
    assert not exists("token make")
    assert not exists("nonsense")
