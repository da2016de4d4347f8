"""`tokensvc disconnect`: kicking out, from the database alone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.callers import Lifetime
from tokensvc.cli.output import json_option, moment, print_json, print_table
from tokensvc.cli.revoking import COMMAND_LINE, PAGE, reason_option, with_revocations

if TYPE_CHECKING:
    from tokensvc.revocation import Accepted, DisconnectProgress, Revocations

__all__ = ["disconnect"]

FAILED: Final = 1
NOT_DONE: Final = 3
LOOK_SECONDS: Final = 1.0


@click.command()
@click.option("--stage-arn", required=True, help="ARN of the stage.")
@click.option("--participant-id", help="Disconnect this participant.")
@click.option("--user-id", help="Disconnect this user: every living token, every connection.")
@click.option("--everybody", is_flag=True, help="Disconnect everybody on the stage.")
@reason_option
@click.option("--ban", type=Lifetime(), help="Issue no token for so long, such as 30m or 90d.")
@click.option("--ban-for-good", is_flag=True, help="Issue no token any more.")
@click.option("--wait", is_flag=True, help="Show the progress until IVS has taken everybody.")
@click.option(
    "--timeout",
    type=Lifetime(),
    default="10m",
    show_default=True,
    help="How long --wait waits at most.",
)
@json_option
def disconnect(
    stage_arn: str,
    participant_id: str | None,
    user_id: str | None,
    everybody: bool,
    reason: str | None,
    ban: int | None,
    ban_for_good: bool,
    wait: bool,
    timeout: int,
    as_json: bool,
) -> int:
    """Disconnect a participant, a user, or everybody of a stage.

    As POST /v1/disconnects does: the request is stored before this returns, and a running service
    makes the calls, at most 5 a second for each Region.

    Exit code 0: stored, and with --wait done. 1: an error, or with --wait IVS refused somebody for
    good. 2: called wrongly. 3: stored, and not done within --timeout.
    """
    if ban is not None and ban_for_good:
        raise click.UsageError("--ban and --ban-for-good exclude each other")
    if ban == 0:
        raise click.BadParameter("is no time; --ban-for-good bans for good", param_hint="--ban")
    fields = {
        "stageArn": stage_arn,
        "participantId": participant_id,
        "userId": user_id,
        "everybody": everybody or None,
        "reason": reason,
        "ban": 0 if ban_for_good else ban,
    }

    async def work(revocations: Revocations, regions: tuple[str, ...]) -> int:
        import asyncio

        from tokensvc.revocation.requests import parse_disconnect_request

        ask = parse_disconnect_request(fields, regions=regions)
        accepted = await revocations.disconnect(ask, caller_id=COMMAND_LINE)
        if not wait:
            _print_accepted(accepted, as_json)
            return 0
        click.echo(f"stored as {accepted.disconnect_id}", err=True)
        progress = await _watch(revocations, accepted.disconnect_id, timeout, asyncio.sleep)
        return await _print_end(revocations, progress, as_json)

    return with_revocations(work)


async def _watch(
    revocations: Revocations,
    disconnect_id: str,
    seconds: float,
    sleep: Callable[[float], Awaitable[object]],
) -> DisconnectProgress:
    """Return the progress once it is done, or as it is after so many seconds."""
    ends = time.monotonic() + seconds
    told = ""
    while True:
        progress = await revocations.progress(disconnect_id, limit=PAGE)
        line = ", ".join(f"{count} {state}" for state, count in sorted(progress.counts.items()))
        if line != told:
            click.echo(line or "nobody is known yet", err=True)
            told = line
        if progress.done or time.monotonic() >= ends:
            return progress
        await sleep(LOOK_SECONDS)


def _print_accepted(accepted: Accepted, as_json: bool) -> None:
    from tokensvc.http.structs import DisconnectAccepted

    if as_json:
        print_json(DisconnectAccepted.of(accepted))
        return
    click.echo(f"stored as {accepted.disconnect_id}")
    if accepted.ban_id is not None:
        click.echo(f"banned: {accepted.ban_id}")
    click.echo(f"expected to be done at {moment(accepted.expected_completion)}")


async def _print_end(revocations: Revocations, progress: DisconnectProgress, as_json: bool) -> int:
    from tokensvc.http.revocation_structs import DisconnectAnswer

    answer = DisconnectAnswer.of(progress)
    while answer.next_cursor is not None:
        more = await revocations.progress(
            answer.disconnect_id, cursor=answer.next_cursor, limit=PAGE
        )
        page = DisconnectAnswer.of(more)
        answer.participants += page.participants
        answer.next_cursor = page.next_cursor
    if as_json:
        print_json(answer)
    else:
        print_table(
            ("PARTICIPANT", "STATE", "ATTEMPTS", "LAST ERROR"),
            [
                (
                    one.participant_id or one.token_id or "-",
                    one.state,
                    str(one.attempts),
                    one.last_error or "-",
                )
                for one in answer.participants
            ],
        )
    if answer.counts.failed:
        return FAILED
    if not answer.done:
        click.echo("tokensvc: stored, and not done yet; is a service running?", err=True)
        return NOT_DONE
    return 0
