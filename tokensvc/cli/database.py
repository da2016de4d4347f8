"""`tokensvc db`: the schema of the store."""

from __future__ import annotations

import click

from tokensvc.cli.auditing import audited

__all__ = ["db"]


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
def upgrade() -> None:
    """Create the database, or bring it to the schema of this version.

    Safe to run twice, and while replicas of the version before are serving.
    """
    from tokensvc.settings import Settings
    from tokensvc.store.schema import HEAD, upgrade

    settings = Settings.load()
    with audited(settings):
        changed = upgrade(settings.database_url)
    click.echo(f"schema {HEAD}: {'upgraded' if changed else 'was current already'}")
