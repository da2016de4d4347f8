"""`tokensvc settings`: every setting, its value, where that came from, and what it means."""

from __future__ import annotations

import click

from tokensvc.cli.output import json_option, print_json

__all__ = ["settings"]


@click.command()
@json_option
def settings(as_json: bool) -> None:
    """Print every setting with its value; secrets are masked."""
    from tokensvc.settings import Settings, describe

    rows = describe(Settings.load())
    if as_json:
        print_json(rows)
        return
    for row in rows:
        unit = f" {row.unit}" if row.unit and row.value else ""
        click.echo(f"{row.name}={row.value}{unit}  ({row.source})")
        click.echo(
            f"    {row.doc}"
            + (f" Default: {row.default or 'none'}." if row.source != "default" else "")
        )
