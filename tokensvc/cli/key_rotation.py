"""`tokensvc keys rotate`: rotation as a job of a scheduler, or by hand.

It does what the rotator inside `serve` does, with the same fence: both may run at the same time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.key_work import EXIT_CODES, FAILED, NOT_YET, report_problems, with_parts
from tokensvc.cli.output import json_option, moment, print_json
from tokensvc.errors import NotFoundError

if TYPE_CHECKING:
    from tokensvc.http.key_structs import RotationAnswer
    from tokensvc.http.parts import Parts

__all__ = ["rotate"]

# Between two looks of --wait, whatever they say is next; and after one that failed.
_LONGEST_PAUSE_SECONDS: Final = 30.0
_SHORTEST_PAUSE_SECONDS: Final = 1.0
_SIGNS_NO_MORE: Final = frozenset({"RETIRING", "DELETED"})


@click.command(epilog=EXIT_CODES)
@click.option("--region", help="Only this Region.  [default: every one of TOKENSVC_REGIONS]")
@click.option("--to", metavar="KEY_ID", help="Let this STANDBY key sign.  [default: the oldest]")
@click.option("--if-due", is_flag=True, help="Do what is due by the policy, and nothing else.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    metavar="SECONDS",
    help="Keep trying for so long, where it is not possible yet.",
)
@json_option
def rotate(
    region: str | None, to: str | None, if_due: bool, wait_seconds: float, as_json: bool
) -> int:
    """Let the STANDBY key sign from now on; no token breaks by it.

    Not possible while there is no standby that IVS has held for TOKENSVC_STANDBY_MIN_AGE seconds;
    where no key signs at all, one does as soon as it is checked. Nothing is done where the key of --to
    signs already.
    With --if-due, whatever is due is done: the rotation, the deletion of drained keys, the import of
    the next standby.
    """

    if if_due and to is not None:
        raise click.UsageError("--to and --if-due contradict each other")

    async def work(parts: Parts) -> list[RotationAnswer]:
        give_up_at = time.monotonic() + wait_seconds
        wanted = parts.keys.wanted(region)
        if to is not None:
            key = await parts.keys.key(to)
            if key.phase in _SIGNS_NO_MORE:
                raise NotFoundError(f"Key {to} is {key.phase} and signs no more.", key_id=to)
            wanted = parts.keys.wanted(key.region)
        jobs = (_Job(parts, one, to, if_due, give_up_at).run() for one in wanted)
        return list(await asyncio.gather(*jobs))

    answers = with_parts(work)
    if as_json:
        print_json({"regions": answers})
    else:
        for answer in answers:
            _print(answer)
    for answer in answers:
        report_problems(answer.region, answer.status.problems or ())
    return max(_exit_code(answer, if_due, to) for answer in answers)


class _Job:
    def __init__(
        self, parts: Parts, region: str, to: str | None, if_due: bool, give_up_at: float
    ) -> None:
        self._keys = parts.keys
        self._region = region
        self._to = to
        self._if_due = if_due
        self._give_up_at = give_up_at

    async def run(self) -> RotationAnswer:
        """Try until it is done or time is up."""
        first: str | None = None
        while True:
            answer = await self._try(first)
            first = first or answer.previous_key_id
            code = _exit_code(answer, self._if_due, self._to)
            left = self._give_up_at - time.monotonic()
            if code == 0 or left <= 0.0:
                return answer
            await asyncio.sleep(min(left, _pause(answer)))

    async def _try(self, first: str | None) -> RotationAnswer:
        if self._if_due:
            return await self._keys.rotate_if_due(self._region)
        return await self._keys.rotate_region(self._region, unless_replaced=first, to=self._to)


def _pause(answer: RotationAnswer) -> float:
    pause = _LONGEST_PAUSE_SECONDS
    if answer.status.next_at is not None:
        pause = min(pause, answer.status.next_at - time.time())
    asked = [problem.retry_after or 0.0 for problem in answer.status.problems or ()]
    if asked:
        pause = max(_SHORTEST_PAUSE_SECONDS, *asked)
    return max(pause, _SHORTEST_PAUSE_SECONDS)


def _exit_code(answer: RotationAnswer, if_due: bool, to: str | None) -> int:
    signs = to is not None and answer.active_key_id == to
    if not if_due and (answer.rotated or signs):
        return 0
    if answer.status.problems:
        return FAILED
    if if_due:
        return NOT_YET if answer.status.blocked else 0
    return NOT_YET


def _print(answer: RotationAnswer) -> None:
    if answer.rotated:
        click.echo(
            f"{answer.region}: {answer.active_key_id} signs now, instead of"
            f" {answer.previous_key_id or 'no key'}"
        )
    else:
        click.echo(f"{answer.region}: {answer.active_key_id or 'no key'} signs as before")
    next_at = answer.status.next_at
    when = "" if next_at is None else f", {moment(next_at)}"
    click.echo(f"  next: {answer.status.next_step}{when}")
