"""`tokensvc policy`: what the policy file says, before a caller finds out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.arguments import PathOption, pairs_of
from tokensvc.cli.output import json_option, print_json, printable

if TYPE_CHECKING:
    from tokensvc.policy import Decision, Finding, Policy
    from tokensvc.settings import Settings
    from tokensvc.tokens.claims import WantedToken

__all__ = ["policy"]

DENIED: Final = 3


@click.group()
def policy() -> None:
    """Look into the policy file."""


@policy.command()
@click.option(
    "--file",
    "path",
    type=PathOption(),
    help="The policy file; default: TOKENSVC_POLICY_FILE.",
)
@click.option("--caller", help="Name of the caller; without it, only the file is checked.")
@click.option("--stage-arn", help="ARN of the stage.")
@click.option("--user-id", help="Who the token would be for.")
@click.option("--role", help="Role that the request names.")
@click.option("--duration", type=int, help="Minutes that the request asks for.")
@click.option("--capability", "capabilities", multiple=True, help="PUBLISH or SUBSCRIBE; repeat.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="Repeat.")
@click.option("--issuer", help="auto, local or ivs.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="KEY=VALUE",
    help="A tag of the stage; repeat. Without any, IVS is asked where a rule goes by tags.",
)
@json_option
def check(
    path: Path | None,
    caller: str | None,
    stage_arn: str | None,
    user_id: str | None,
    role: str | None,
    duration: int | None,
    capabilities: tuple[str, ...],
    attributes: tuple[str, ...],
    issuer: str | None,
    tags: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check the policy file, and say what a caller gets for a request and which rule decides.

    Exit code 0: the file is sound, and the caller gets the token. 1: the file has faults, which are
    listed with their lines, or the request cannot be checked. 3: the policy denies the request.
    """
    from tokensvc.policy import Finding
    from tokensvc.settings import Settings

    settings = Settings.load()
    loaded = _load(path or settings.policy_file, settings)
    request: dict[str, object] = {
        "stageArn": stage_arn,
        "userId": user_id,
        "role": role,
        "duration": duration,
        "capabilities": list(capabilities) or None,
        "attributes": pairs_of(attributes, "--attribute") or None,
        "issuer": issuer,
    }
    given = {name: value for name, value in request.items() if value is not None}
    if caller is None:
        if given or tags:
            raise click.UsageError("A request is checked for a caller: give --caller.")
        return _tell_file(loaded, as_json)
    if stage_arn is None:
        raise click.UsageError("A request is for a stage: give --stage-arn.")
    wanted = _parse(given, settings)
    findings: list[Finding] = []
    known = pairs_of(tags, "--tag") or _ask_for_tags(loaded, caller, wanted, settings)
    decision = loaded.decide(caller, wanted, known, findings=findings)
    # A caller without a rule is refused before any rule has said something.
    findings = findings or [
        Finding(one.field, False, one.detail, one.rule) for one in decision.refusals
    ]
    if as_json:
        print_json(_as_object(caller, decision, findings, loaded))
    else:
        _print(caller, decision, findings)
    return 0 if decision.allowed else DENIED


def _load(path: Path | None, settings: Settings) -> Policy:
    import time

    from tokensvc.policy import Policy, PolicyFile

    if path is None:
        return Policy.open(settings.max_duration)
    return PolicyFile(path, time.time, max_duration=settings.max_duration).load()


def _parse(given: dict[str, object], settings: Settings) -> WantedToken:
    from tokensvc.tokens.limits import REGIONS
    from tokensvc.tokens.validate import parse_wanted_token

    # A policy can be checked where no service runs, and there no Regions need be set.
    return parse_wanted_token(
        given, regions=settings.regions or REGIONS, max_duration=settings.max_duration
    )


def _ask_for_tags(
    loaded: Policy, caller: str, wanted: WantedToken, settings: Settings
) -> Mapping[str, str] | None:
    from tokensvc.http.parts import open_gateway

    if not loaded.needs_tags(caller, wanted.stage):
        return None

    async def ask() -> Mapping[str, str]:
        gateway = open_gateway(settings)
        try:
            return (await gateway.get_stage(wanted.stage.region, str(wanted.stage))).tags
        finally:
            await gateway.aclose()

    return asyncio.run(ask())


def _tell_file(loaded: Policy, as_json: bool) -> int:
    if as_json:
        print_json({"open": loaded.is_open, "callers": loaded.callers})
    elif loaded.is_open:
        click.echo("no policy file (TOKENSVC_POLICY_FILE): scopes alone decide")
    else:
        click.echo(f"sound; callers: {', '.join(map(printable, loaded.callers)) or 'none'}")
    return 0


def _as_object(
    caller: str, decision: Decision, findings: list[Finding], loaded: Policy
) -> dict[str, object]:
    request = decision.request
    limits = loaded.limits_of(caller)
    return {
        "caller": caller,
        "allowed": decision.allowed,
        "rule": str(decision.rule),
        "token": None
        if request is None
        else {
            "stageArn": str(request.stage),
            "userId": request.user_id,
            "duration": request.duration,
            "capabilities": request.capabilities,
            "attributes": request.attributes,
            "issuer": request.issuer,
        },
        "findings": [
            {
                "field": one.field,
                "allowed": one.allowed,
                "detail": one.detail,
                "rule": one.rule.path,
                "line": one.rule.line or None,
            }
            for one in findings
        ],
        "limits": {
            "tokensPerSecond": limits.per_second,
            "burst": limits.burst if limits.per_second is not None else None,
            "perUserPerMinute": limits.per_user_minute,
        },
    }


def _print(caller: str, decision: Decision, findings: list[Finding]) -> None:
    verdict = "may have this token" if decision.allowed else "is denied this token"
    click.echo(f"{printable(caller)} {verdict}: {printable(str(decision.rule))}")
    for one in findings:
        said = "ok    " if one.allowed else "DENIED"
        field = f"{one.field}: " if one.field else ""
        click.echo(printable(f"  {said} {field}{one.detail} [{one.rule}]"))
    request = decision.request
    if request is not None:
        click.echo(
            f"token: {' '.join(request.capabilities) or 'no capability'}, {request.duration} minutes,"
            f" issuer {request.issuer}"
        )
        for name, text in request.attributes.items():
            click.echo(f"  {printable(name)} = {printable(text)}")
