"""`tokensvc bans`: who may not be issued a token, from the database alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from tokensvc.cli.callers import Lifetime
from tokensvc.cli.output import json_option, moment, print_json, print_table
from tokensvc.cli.revoking import COMMAND_LINE, PAGE, reason_option, with_revocations

if TYPE_CHECKING:
    from tokensvc.revocation import Ban, Revocations
    from tokensvc.revocation.requests import BanSubject

__all__ = ["bans"]

_stage_option = click.option("--stage-arn", help="ARN of the stage.")
_user_option = click.option("--user-id", help="A user.")
_participant_option = click.option("--participant-id", help="A participant.")


@click.group()
def bans() -> None:
    """Look after bans: who may not be issued a token.

    A change takes effect on every replica within a second.
    """


@bans.command("list")
@_stage_option
@_user_option
@_participant_option
@json_option
def list_(
    stage_arn: str | None, user_id: str | None, participant_id: str | None, as_json: bool
) -> None:
    """List the bans that stand, all of them or those that name what is given."""

    async def work(revocations: Revocations, _: tuple[str, ...]) -> list[Ban]:
        found: list[Ban] = []
        while True:
            page = await revocations.standing_bans(
                stage_arn=stage_arn,
                user_id=user_id,
                participant_id=participant_id,
                after=found[-1].ban_id if found else "",
                limit=PAGE,
            )
            found += page
            if len(page) < PAGE:
                return found

    _print_bans(with_revocations(work), as_json)


@bans.command()
@_stage_option
@_user_option
@_participant_option
@click.option("--everybody", is_flag=True, help="Ban the stage: nobody is issued a token for it.")
@click.option("--for", "duration", type=Lifetime(), help="How long, such as 30m; or for good.")
@reason_option
@json_option
def add(
    stage_arn: str | None,
    user_id: str | None,
    participant_id: str | None,
    everybody: bool,
    duration: int | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Ban a user on a stage, a user everywhere, a participant, or (--everybody) a stage.

    Who is connected stays; `tokensvc disconnect --ban` does both.
    """
    if duration == 0:
        raise click.BadParameter("is no time; left out, it bans for good", param_hint="--for")
    fields = {
        **_subject_fields(stage_arn, user_id, participant_id, everybody),
        "duration": duration,
        "reason": reason,
    }

    async def work(revocations: Revocations, regions: tuple[str, ...]) -> Ban:
        from tokensvc.revocation.requests import parse_ban_request

        ask = parse_ban_request(fields, regions=regions, now=time.time())
        return await revocations.ban(
            stage_arn=ask.subject.stage_arn,
            user_id=ask.subject.user_id,
            participant_id=ask.subject.participant_id,
            until=ask.until,
            reason=ask.reason,
            caller_id=COMMAND_LINE,
        )

    _print_bans([with_revocations(work)], as_json)


@bans.command()
@click.argument("ban_id", required=False)
@_stage_option
@_user_option
@_participant_option
@click.option("--everybody", is_flag=True, help="Lift the bans of the stage itself.")
@json_option
def lift(
    ban_id: str | None,
    stage_arn: str | None,
    user_id: str | None,
    participant_id: str | None,
    everybody: bool,
    as_json: bool,
) -> None:
    """Lift the ban BAN_ID, or every ban of exactly what the options name."""
    fields = _subject_fields(stage_arn, user_id, participant_id, everybody)
    if ban_id is not None and any(fields.values()):
        raise click.UsageError("name a ban by its id, or by options, not by both")

    async def work(revocations: Revocations, regions: tuple[str, ...]) -> list[Ban]:
        from tokensvc.revocation.requests import parse_ban_subject

        if ban_id is not None:
            return [await revocations.lift(ban_id)]
        subject: BanSubject = parse_ban_subject(fields, regions=regions)
        lifted: list[Ban] = []
        while some := await revocations.lift_of(
            stage_arn=subject.stage_arn,
            user_id=subject.user_id,
            participant_id=subject.participant_id,
        ):
            lifted += some
        return lifted

    _print_bans(with_revocations(work), as_json)


def _subject_fields(
    stage_arn: str | None, user_id: str | None, participant_id: str | None, everybody: bool
) -> dict[str, object]:
    return {
        "stageArn": stage_arn,
        "userId": user_id,
        "participantId": participant_id,
        "everybody": everybody or None,
    }


def _print_bans(found: list[Ban], as_json: bool) -> None:
    from tokensvc.http.revocation_structs import BanAnswer

    if as_json:
        print_json({"bans": [BanAnswer.of(ban) for ban in found]})
        return
    print_table(
        ("BAN", "STAGE", "USER", "PARTICIPANT", "UNTIL", "LIFTED", "REASON"),
        [
            (
                ban.ban_id,
                ban.stage_arn or "-",
                _shown(ban.user_id),
                ban.participant_id or "-",
                "for good" if ban.until is None else moment(ban.until),
                moment(ban.lifted_at),
                _shown(ban.reason or None),
            )
            for ban in found
        ],
    )


def _shown(text: str | None) -> str:
    # Somebody else's text: escaped, it cannot drive the terminal.
    return "-" if text is None else ascii(text)
