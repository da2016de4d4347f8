"""How a command prints: columns for people, JSON for programs (`--json`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click
import msgspec

__all__ = ["json_option", "moment", "print_json", "print_table", "printable"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Print `value` as indented JSON, one final newline, in UTF-8 whatever the terminal's encoding is."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def printable(text: str) -> str:
    """Return `text`, which comes from somebody else, escaped so that it cannot drive the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def moment(seconds: float | None) -> str:
    """Return Unix seconds as UTC in RFC 3339, to the second; `-` for None."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
