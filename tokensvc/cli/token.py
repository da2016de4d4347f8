"""`tokensvc token`: mint one token, or find out what is wrong with one."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.arguments import pairs_of
from tokensvc.cli.auditing import audited
from tokensvc.cli.output import json_option, print_json, printable

if TYPE_CHECKING:
    from tokensvc.issuing.issued import IssuedToken
    from tokensvc.settings import Settings
    from tokensvc.tokens.inspect import Inspection

__all__ = ["token"]

REFUSED: Final = 1
COMMAND_LINE: Final = "command-line"
"""Who is said to have asked for a token that no caller asked for; no caller id looks like this."""


@click.group()
def token() -> None:
    """Mint or inspect a participant token."""


@token.command()
@click.option("--stage-arn", required=True, help="ARN of the stage.")
@click.option("--user-id", help="Who it is for, at most 128 characters; all participants see it.")
@click.option("--duration", type=int, help="Minutes until it expires, 1 to 20160; default 720.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    help="PUBLISH or SUBSCRIBE; may be repeated. Default: both.",
)
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="An attribute; may be repeated. 1 KB together; all participants see them.",
)
@click.option("--issuer", help="local, ivs, or auto (the default).")
@json_option
def mint(
    stage_arn: str,
    user_id: str | None,
    duration: int | None,
    capabilities: tuple[str, ...],
    attributes: tuple[str, ...],
    issuer: str | None,
    as_json: bool,
) -> None:
    """Mint a participant token as the service does, and print it.

    For the operator: no policy file is asked, and no limit counts. Bans hold, and the ledger has it.
    """
    from tokensvc.settings import Settings

    fields: dict[str, object] = {
        "stageArn": stage_arn,
        "userId": user_id,
        "duration": duration,
        "capabilities": list(capabilities) or None,
        "attributes": pairs_of(attributes, "--attribute") or None,
        "issuer": issuer,
    }
    settings = Settings.load()
    with audited(settings):
        issued = asyncio.run(_mint(settings, fields))
    if as_json:
        print_json(issued)
    else:
        click.echo(issued.token)


@token.command()
@click.argument("text", metavar="[TOKEN]", required=False)
@click.option(
    "--against",
    type=click.Choice(("ring", "ivs", "nothing")),
    default="ring",
    show_default=True,
    help="Who knows the public key: this service's key ring, IVS (GetPublicKey), or nobody.",
)
@json_option
def inspect(text: str | None, against: str, as_json: bool) -> int:
    """Say in words why IVS would refuse TOKEN; read it from standard input where it is left out.

    Exit code 0: IVS would accept it. 1: it would not, or its signature could not be checked.
    """
    from tokensvc.settings import Settings
    from tokensvc.tokens.limits import MAX_TOKEN_CHARS

    if text is None:
        # One byte more than a token may have is enough to be told so; what is no text is no token either.
        given = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_TOKEN_CHARS + 1)
        text = given.decode("utf-8", "replace")
    inspection = asyncio.run(_inspect(Settings.load(), text.strip(), against))
    if as_json:
        print_json(_as_object(inspection))
    else:
        _print_inspection(inspection)
    return 0 if inspection.acceptable else REFUSED


async def _mint(settings: Settings, fields: dict[str, object]) -> IssuedToken:
    from tokensvc.http.parts import open_parts
    from tokensvc.tokens.validate import parse_token_request

    request = parse_token_request(
        {name: value for name, value in fields.items() if value is not None},
        regions=settings.require_regions(),
        max_duration=settings.max_duration,
    )
    async with open_parts(settings, time.time) as parts:
        return await parts.desk.tokens.mint(request, COMMAND_LINE)


async def _inspect(settings: Settings, text: str, against: str) -> Inspection:
    from tokensvc.tokens.inspect import inspect_token

    if against == "nothing":
        return inspect_token(text, now=time.time())
    pem = await (_pem_in_ring if against == "ring" else _pem_at_ivs)(settings, text)
    asked = "IVS" if against == "ivs" else "the key ring (--against ivs asks IVS)"
    return inspect_token(text, now=time.time(), public_key_for=lambda _: pem, asked=asked)


async def _pem_in_ring(settings: Settings, text: str) -> str | None:
    from tokensvc.cli.opening import open_store
    from tokensvc.keyring import KeyPhase, SqlRingStore
    from tokensvc.tokens.reading import unverified_kid

    kid = unverified_kid(text)
    async with open_store(settings) as engine:
        rings = await SqlRingStore(engine, settings.ring_id, time.time).load_all()
    for ring in rings:
        for key in ring.keys:
            if key.arn == kid and key.phase is not KeyPhase.DELETED:
                return key.public_key_pem
    return None


async def _pem_at_ivs(settings: Settings, text: str) -> str | None:
    from tokensvc.errors import IvsNotFoundError
    from tokensvc.http.parts import open_gateway
    from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn
    from tokensvc.tokens.reading import unverified_kid

    try:
        arn = PublicKeyArn.parse(unverified_kid(text) or "")
    except InvalidArnError:
        return None
    gateway = open_gateway(settings)
    try:
        return (await gateway.get_public_key(arn.region, str(arn))).public_key_pem
    except IvsNotFoundError:
        return None
    finally:
        await gateway.aclose()


def _as_object(inspection: Inspection) -> dict[str, object]:
    return {
        "acceptable": inspection.acceptable,
        "kind": inspection.kind,
        "signature": inspection.signature,
        "header": inspection.header,
        "claims": inspection.claims,
        "findings": inspection.findings,
    }


def _print_inspection(inspection: Inspection) -> None:
    verdict = "IVS would accept it" if inspection.acceptable else "IVS would not accept it"
    if not inspection.refusals and inspection.signature == "not_checked":
        verdict = "nothing found, but its signature was not checked"
    click.echo(f"{inspection.kind} token: {verdict}; signature {inspection.signature}")
    for finding in inspection.findings:
        where = f"{finding.where}: " if finding.where else ""
        click.echo(printable(f"  {finding.severity} [{finding.code}] {where}{finding.detail}"))
    for name, part in (("header", inspection.header), ("claims", inspection.claims)):
        if part is not None:
            click.echo(f"{name}:")
            for field, value in part.items():
                click.echo(printable(f"  {field}: {json.dumps(value)}"))
