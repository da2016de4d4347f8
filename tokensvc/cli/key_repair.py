"""`tokensvc keys invalidate|reconcile|import|reseal`: what an operator does when something went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.arguments import PathOption
from tokensvc.cli.key_work import EXIT_CODES, FAILED, NOT_YET, report_problems, with_parts
from tokensvc.cli.output import json_option, moment, print_json, print_table
from tokensvc.errors import ConfigurationError, TokenServiceError

if TYPE_CHECKING:
    from tokensvc.http.key_structs import InvalidationAnswer, KeyAnswer
    from tokensvc.http.parts import Parts
    from tokensvc.keyring.drift import ReconcileReport
    from tokensvc.keyring.reseal import ResealReport

__all__ = ["import_", "invalidate", "reconcile", "reseal"]

# A P-384 private key in PEM has some 300 bytes.
_MAX_KEY_FILE_BYTES: Final = 16_384

_file = PathOption(exists=True, dir_okay=False)


@click.command(epilog=EXIT_CODES)
@click.argument("key_id")
@click.option("--dry-run", is_flag=True, help="Only say what would break.")
@click.option(
    "--disconnect", is_flag=True, help="Disconnect everybody whose token the key signed, too."
)
@click.option("--reason", default="", help="What IVS tells those who are disconnected.")
@json_option
def invalidate(key_id: str, dry_run: bool, disconnect: bool, reason: str, as_json: bool) -> int:
    """Take the compromised key KEY_ID out: sign no more, delete it at IVS, destroy its private half.

    Every living token of the key fails at join from then on. Doing it again is safe.
    """

    async def work(parts: Parts) -> InvalidationAnswer:
        return await parts.keys.invalidate(
            key_id, dry_run=dry_run, disconnect=disconnect, reason=reason
        )

    answer = with_parts(work)
    if as_json:
        print_json(answer)
    else:
        _print_invalidation(answer)
    if answer.problem is not None:
        report_problems(answer.region, (answer.problem,))
    return 0 if dry_run or answer.deleted else FAILED


@click.command(epilog=EXIT_CODES)
@click.option("--region", help="Only this Region.  [default: every one of TOKENSVC_REGIONS]")
@click.option("--dry-run", is_flag=True, help="Only show the differences.")
@json_option
def reconcile(region: str | None, dry_run: bool, as_json: bool) -> int:
    """Show where the stored ring and IVS differ, and put it right.

    Keys of other owners are shown and never touched. With --dry-run, exit code 3 says that there is
    something to put right.
    """

    failed: list[str] = []

    async def work(parts: Parts) -> list[ReconcileReport]:
        reports = []
        for one in parts.keys.wanted(region):
            try:
                reports.append(await parts.manager.reconcile(one, dry_run=dry_run))
            except TokenServiceError as error:
                # One Region that cannot be looked at does not hide the others.
                failed.append(f"{one}: {error.detail} ({error.code})")
        return reports

    reports = with_parts(work)
    for line in failed:
        click.echo(f"tokensvc: {line}", err=True)
    if as_json:
        print_json({"regions": [_report_row(report) for report in reports]})
    else:
        _print_findings(reports)
    code = FAILED if failed else 0
    for report in reports:
        status = report.status
        if status is None:
            code = max(code, NOT_YET if any(found.repair for found in report.findings) else 0)
            continue
        for problem in status.problems:
            line = f"{report.region}: {problem.step}: {problem.detail} ({problem.code})"
            click.echo(f"tokensvc: {line}", err=True)
        if not as_json:
            click.echo(f"{report.region}: did: {', '.join(status.steps) or 'nothing'}")
            click.echo(f"  next: {status.next_step}{_when(status.next_at)}")
        code = max(code, FAILED if status.problems else NOT_YET if status.blocked else 0)
    return code


@click.command("import", epilog=EXIT_CODES)
@click.option(
    "--private-key-file", required=True, type=_file, help="PEM or DER of the P-384 private key."
)
@click.option("--arn", required=True, help="ARN under which IVS holds the public half.")
@json_option
def import_(private_key_file: Path, arn: str, as_json: bool) -> int:
    """Take a key that was made elsewhere into the ring, as STANDBY.

    Its public half must be in IVS already (console or ImportPublicKey); that they belong together is
    checked. From then on it is like any other key: it signs when its turn comes, or by `keys rotate
    --to`, and is deleted at IVS when its tokens have expired. Delete the file afterwards.
    """

    async def work(parts: Parts) -> KeyAnswer:
        from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn

        try:
            region = PublicKeyArn.parse(arn).region
        except InvalidArnError as error:
            raise ConfigurationError(f"--arn: {error}") from error
        (region,) = parts.keys.wanted(region)
        key = await parts.manager.adopt(region, _read_key(private_key_file), arn)
        return await parts.keys.key(key.key_id)

    key = with_parts(work)
    if as_json:
        print_json(key)
    else:
        click.echo(f"{key.region}: key {key.key_id} is {key.phase}, under {key.arn}")
        click.echo(f"  let it sign: `tokensvc keys rotate --to {key.key_id}`")
    return 0


@click.command(epilog=EXIT_CODES)
@click.option(
    "--new-master-key-file",
    type=_file,
    help="Seal under this one.  [default: the master key of the settings]",
)
@json_option
def reseal(new_master_key_file: Path | None, as_json: bool) -> int:
    """Seal all private halves anew, under another master key.

    Without a break: set the new master key on every replica, with the old one as
    TOKENSVC_OLD_MASTER_KEY_FILE or TOKENSVC_OLD_KMS_KEY_ID; restart them; run this; unset the old one.
    With --new-master-key-file, the settings still have the old one, and a replica that is restarted
    before it has the new one cannot sign.
    """

    async def work(parts: Parts) -> ResealReport:
        from tokensvc.http.sealers import local_sealer
        from tokensvc.keyring.reseal import reseal as run

        new = parts.sealers.first
        if new_master_key_file is not None:
            new = await local_sealer(new_master_key_file)
        return await run(parts.rings, parts.ring_id, old=parts.sealers.sealer, new=new)

    report = with_parts(work)
    if as_json:
        print_json({"resealed": report.resealed, "already": report.already})
    else:
        click.echo(f"sealed anew: {', '.join(report.resealed) or 'none'}")
        click.echo(f"under that master key already: {', '.join(report.already) or 'none'}")
    return 0


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_KEY_FILE_BYTES} bytes: not a key")
    return content


def _print_invalidation(answer: InvalidationAnswer) -> None:
    done = "is deleted at IVS" if answer.deleted else "is not yet deleted at IVS"
    if answer.dry_run and not answer.deleted:
        done = "would be deleted at IVS"
    click.echo(f"{answer.region}: key {answer.key_id} ({answer.phase}) {done}")
    signed = answer.phase == "ACTIVE"
    signs = answer.successor if answer.dry_run and signed else answer.active_key_id
    click.echo(f"  then signs: {signs or 'nothing; tokens come from CreateParticipantToken'}")
    if answer.living_tokens is None:
        click.echo(
            "  living tokens that cannot join any more: not counted, the store took too long"
        )
    else:
        click.echo(
            f"  living tokens that cannot join any more: {answer.living_tokens}, the last until"
            f" {moment(answer.latest_expiry)}"
        )
    if answer.tokens:
        print_table(
            ("STAGE", "CALLER", "TOKENS", "LAST UNTIL"),
            [
                (
                    user.stage_arn or "(connection tokens)",
                    user.caller_id or "-",
                    str(user.living),
                    moment(user.latest_expiry),
                )
                for user in answer.tokens
            ],
        )
    if answer.disconnect is not None:
        queued = answer.disconnect
        click.echo(
            f"  disconnects queued as {queued.disconnect_id}, done by about"
            f" {moment(queued.expected_completion)}"
        )


def _print_findings(reports: list[ReconcileReport]) -> None:
    found = [(report, finding) for report in reports for finding in report.findings]
    if not found:
        for report in reports:
            click.echo(f"{report.region}: the stored ring and IVS agree")
        return
    print_table(
        ("REGION", "WHAT", "KEY", "ARN", "DETAIL", "REPAIR"),
        [
            (
                report.region,
                finding.kind,
                finding.key_id or "-",
                finding.arn or "-",
                finding.detail,
                finding.repair or "none",
            )
            for report, finding in found
        ],
    )


def _report_row(report: ReconcileReport) -> dict[str, object]:
    from tokensvc.http.key_report import describe_region

    return {
        "region": report.region,
        "dryRun": report.dry_run,
        "findings": [
            {
                "kind": found.kind,
                "keyId": found.key_id,
                "arn": found.arn,
                "detail": found.detail,
                "repair": found.repair,
            }
            for found in report.findings
        ],
        "planned": report.planned,
        "done": [] if report.status is None else report.status.steps,
        "status": None if report.status is None else describe_region(report.region, report.status),
    }


def _when(seconds: float | None) -> str:
    return "" if seconds is None else f", {moment(seconds)}"
