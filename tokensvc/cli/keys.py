"""`tokensvc keys`: the key ring."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from tokensvc.cli.opening import with_store
from tokensvc.cli.output import json_option, moment, print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tokensvc.keyring import KeyRecord
    from tokensvc.settings import Settings

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Look after the key ring."""


@keys.command("list")
@click.option("--all", "with_deleted", is_flag=True, help="List DELETED keys too.")
@json_option
def list_(with_deleted: bool, as_json: bool) -> None:
    """List the keys of the ring, Region by Region."""

    async def work(engine: AsyncEngine, settings: Settings) -> list[KeyRecord]:
        from tokensvc.keyring import KeyPhase, SqlRingStore

        rings = await SqlRingStore(engine, settings.ring_id, time.time).load_all()
        return [
            key
            for ring in rings
            for key in ring.keys
            if with_deleted or key.phase is not KeyPhase.DELETED
        ]

    found = with_store(work)
    if as_json:
        print_json({"keys": [_as_row(key) for key in found]})
        return
    print_table(
        ("REGION", "KEY", "PHASE", "CREATED", "ACTIVE SINCE", "ARN"),
        [
            (
                key.region,
                key.key_id,
                key.phase.value,
                moment(key.created_at),
                moment(key.activated_at),
                key.arn or "-",
            )
            for key in found
        ],
    )


def _as_row(key: KeyRecord) -> dict[str, object]:
    return {
        "keyId": key.key_id,
        "region": key.region,
        "phase": key.phase.value,
        "arn": key.arn,
        "name": key.name,
        "createdAt": key.created_at,
        "importedAt": key.imported_at,
        "checkedAt": key.checked_at,
        "activatedAt": key.activated_at,
        "deletedAt": key.deleted_at,
    }
