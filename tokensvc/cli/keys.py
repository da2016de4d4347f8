"""`tokensvc keys`: the key ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokensvc.cli.key_repair import import_, invalidate, reconcile, reseal
from tokensvc.cli.key_rotation import rotate
from tokensvc.cli.key_work import EXIT_CODES, with_parts
from tokensvc.cli.output import json_option, moment, print_json, print_table

if TYPE_CHECKING:
    from tokensvc.http.key_structs import KeyAnswer, KeysAnswer, RegionAnswer
    from tokensvc.http.parts import Parts

__all__ = ["keys"]


@click.group(epilog=EXIT_CODES)
def keys() -> None:
    """Look after the key ring."""


@keys.command("list", epilog=EXIT_CODES)
@click.option("--all", "with_deleted", is_flag=True, help="List DELETED keys too.")
@json_option
def list_(with_deleted: bool, as_json: bool) -> None:
    """List the keys of the ring, and ask IVS how each Region stands; changes nothing.

    With --json, the same fields as `GET /v1/keys`.
    """

    async def work(parts: Parts) -> KeysAnswer:
        return await parts.keys.keys(look=True)

    found = with_parts(work)
    if not with_deleted:
        found.keys = [key for key in found.keys if key.phase != "DELETED"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("REGION", "KEY", "PHASE", "AGE", "LIVE TOKENS", "UNTIL", "NEXT", "WHEN", "ARN"),
        [_key_row(key) for key in found.keys],
    )
    for region in found.regions:
        _print_region(region, found.not_signing.get(region.region))


def _key_row(key: KeyAnswer) -> tuple[str, ...]:
    return (
        key.region,
        key.key_id,
        key.phase + ("*" if key.signing else ""),
        _length(key.age_seconds),
        "-" if key.live_tokens is None else str(key.live_tokens),
        moment(key.last_token_expires_at),
        key.next_phase or "-",
        moment(key.next_at),
        key.arn or "-",
    )


def _print_region(region: RegionAnswer, why_not_signing: str | None) -> None:
    next_at = "" if region.next_at is None else f", {moment(region.next_at)}"
    click.echo(f"{region.region}: next: {region.next_step}{next_at}")
    if why_not_signing is not None:
        click.echo(f"  {why_not_signing}")
    if region.used_slots is not None:
        foreign = ", ".join(region.foreign_keys or ()) or "none"
        click.echo(f"  slots used: {region.used_slots} of 3; keys of others: {foreign}")
    if region.overdue_seconds:
        click.echo(f"  the rotation is {_length(region.overdue_seconds)} late")
    for problem in region.problems or ():
        click.echo(f"  {problem.step}: {problem.detail} ({problem.code})")


def _length(seconds: float) -> str:
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


for _command in (rotate, invalidate, reconcile, import_, reseal):
    keys.add_command(_command)
