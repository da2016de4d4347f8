"""`tokensvc disconnect` and `tokensvc bans`: kicking out and keeping out, from the database alone.

Nothing here talks to IVS. What is stored is taken up within a second by a service that runs on the same
database; where none runs, it waits for the next one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import click

from tokensvc.cli.callers import Lifetime
from tokensvc.cli.opening import with_store
from tokensvc.cli.output import json_option, moment, print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tokensvc.revocation import Accepted, Ban, DisconnectProgress, Revocations
    from tokensvc.revocation.requests import BanSubject
    from tokensvc.settings import Settings

__all__ = ["bans", "disconnect"]

T = TypeVar("T")

COMMAND_LINE: Final = "command-line"
"""Who is said to have asked; no caller id looks like this."""
FAILED: Final = 1
NOT_DONE: Final = 3
LOOK_SECONDS: Final = 1.0
_PAGE: Final = 1000

_stage_option = click.option("--stage-arn", help="ARN of the stage.")
_user_option = click.option("--user-id", help="A user.")
_participant_option = click.option("--participant-id", help="A participant.")
_reason_option = click.option(
    "--reason", help="Told to IVS and kept with the ban, at most 128 characters."
)


@click.command()
@click.option("--stage-arn", required=True, help="ARN of the stage.")
@click.option("--participant-id", help="Disconnect this participant.")
@click.option("--user-id", help="Disconnect this user: every living token, every connection.")
@click.option("--everybody", is_flag=True, help="Disconnect everybody on the stage.")
@_reason_option
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

    return _with_revocations(work)


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
                limit=_PAGE,
            )
            found += page
            if len(page) < _PAGE:
                return found

    _print_bans(_with_revocations(work), as_json)


@bans.command()
@_stage_option
@_user_option
@_participant_option
@click.option("--everybody", is_flag=True, help="Ban the stage: nobody is issued a token for it.")
@click.option("--for", "duration", type=Lifetime(), help="How long, such as 30m; or for good.")
@_reason_option
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

    _print_bans([_with_revocations(work)], as_json)


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

    _print_bans(_with_revocations(work), as_json)


def _subject_fields(
    stage_arn: str | None, user_id: str | None, participant_id: str | None, everybody: bool
) -> dict[str, object]:
    return {
        "stageArn": stage_arn,
        "userId": user_id,
        "participantId": participant_id,
        "everybody": everybody or None,
    }


def _with_revocations(work: Callable[[Revocations, tuple[str, ...]], Awaitable[T]]) -> T:
    async def run(engine: AsyncEngine, settings: Settings) -> T:
        regions = settings.require_regions()
        async with _open_revocations(engine, settings) as revocations:
            return await work(revocations, regions)

    return with_store(run)


@asynccontextmanager
async def _open_revocations(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Revocations]:
    from tokensvc.ledger import Ledger
    from tokensvc.revocation import BanList, BanStore, CallQueue, DisconnectStore, Revocations
    from tokensvc.store.transactions import open_transactions

    transactions = open_transactions(engine)
    try:
        ban_store = BanStore(engine, transactions, time.time)
        yield Revocations(
            store=DisconnectStore(engine, transactions),
            calls=CallQueue(engine, transactions),
            ban_store=ban_store,
            bans=BanList(ban_store, time.time),
            ledger=Ledger(engine),
            clock=time.time,
            wake=lambda _: None,
            idempotency_window=settings.idempotency_window,
            retention=settings.ledger_retention,
        )
    finally:
        await transactions.aclose()


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
        progress = await revocations.progress(disconnect_id, limit=_PAGE)
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
            answer.disconnect_id, cursor=answer.next_cursor, limit=_PAGE
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
