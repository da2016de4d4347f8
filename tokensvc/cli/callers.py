"""`tokensvc callers`: who may call the service, and their API keys."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import click

from tokensvc.cli.opening import with_store
from tokensvc.cli.output import json_option, moment, print_json, print_table
from tokensvc.errors import ConfigurationError

if TYPE_CHECKING:
    from tokensvc.callers import ApiKey, Caller, SqlCallerStore

__all__ = ["callers"]

T = TypeVar("T")

_LIFETIME: Final = re.compile(r"(\d{1,6})([smhd])")
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Lifetime(click.ParamType[int]):
    """A length of time such as `90d`, as seconds."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return seconds; fails with a sentence for anything that is not a length of time."""
        match = _LIFETIME.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a length of time such as 30m, 12h or 90d", param, ctx)
        return int(match[1]) * _UNIT_SECONDS[match[2]]


@click.group()
def callers() -> None:
    """Look after callers and their API keys.

    A new API key works at once; any other change takes effect on every replica within a second
    (TOKENSVC_CALLER_REFRESH).
    """


@callers.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="A scope the caller has; may be repeated. Default: tokens:mint and tokens:read.",
)
@click.option("--expires-in", type=Lifetime(), help="Lifetime of the caller, such as 90d.")
@json_option
def add(name: str, scopes: tuple[str, ...], expires_in: int | None, as_json: bool) -> None:
    """Add a caller and print its API key: now, and never again."""

    async def work(store: SqlCallerStore) -> tuple[Caller, ApiKey]:
        wanted = scopes or ("tokens:mint", "tokens:read")
        expires_at = None if expires_in is None else time.time() + expires_in
        return await store.add(name, wanted, expires_at)

    _make_key(work, as_json)


@callers.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List callers, revoked ones too. API keys are not stored and cannot be shown."""

    async def work(store: SqlCallerStore) -> None:
        found = await store.list()
        now = time.time()
        if as_json:
            print_json({"callers": [_as_row(caller, now) for caller in found]})
            return
        print_table(
            ("CALLER", "NAME", "STATE", "SCOPES", "CREATED", "EXPIRES"),
            [
                (
                    caller.caller_id,
                    caller.name,
                    caller.state(now),
                    " ".join(sorted(caller.scopes)),
                    moment(caller.created_at),
                    moment(caller.expires_at),
                )
                for caller in found
            ],
        )

    _with_store(work)


@callers.command()
@click.argument("caller")
@click.option(
    "--restart", is_flag=True, help="Drop the newer of two secrets of an unfinished rotation."
)
@click.option(
    "--overlap",
    type=Lifetime(),
    default="1h",
    show_default=True,
    help="How long the old API key stays valid beside the new one.",
)
@json_option
def rotate(caller: str, overlap: int, restart: bool, as_json: bool) -> None:
    """Give CALLER (its id or name) a new API key and print it: now, and never again."""

    async def work(store: SqlCallerStore) -> tuple[Caller, ApiKey]:
        return await store.rotate(caller, old_valid_until=time.time() + overlap, restart=restart)

    _make_key(work, as_json)


@callers.command()
@click.argument("caller")
@json_option
def revoke(caller: str, as_json: bool) -> None:
    """Revoke CALLER (its id or name) for good."""

    async def work(store: SqlCallerStore) -> None:
        changed = await store.revoke(caller)
        if as_json:
            print_json(_as_row(changed, time.time()))
        else:
            click.echo(f"revoked {changed.caller_id} ({changed.name})")

    _with_store(work)


def _with_store(work: Callable[[SqlCallerStore], Awaitable[T]]) -> T:
    from tokensvc.callers import SqlCallerStore

    return with_store(lambda engine, _: work(SqlCallerStore(engine, time.time)))


def _as_row(caller: Caller, now: float) -> dict[str, object]:
    return {
        "callerId": caller.caller_id,
        "name": caller.name,
        "state": caller.state(now),
        "scopes": sorted(caller.scopes),
        "createdAt": caller.created_at,
        "expiresAt": caller.expires_at,
        "revokedAt": caller.revoked_at,
    }


def _make_key(
    make: Callable[[SqlCallerStore], Awaitable[tuple[Caller, ApiKey]]], as_json: bool
) -> None:
    """Make an API key and print it, which nobody can do again."""
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed, and the API key would be lost")
    caller, api_key = _with_store(make)
    try:
        _print_new_key(caller, api_key.reveal(), as_json)
    except OSError:
        click.echo(
            "tokensvc: the API key is made and could not be shown;"
            f" `tokensvc callers rotate {caller.name} --restart` makes another",
            err=True,
        )
        raise


def _print_new_key(caller: Caller, api_key: str, as_json: bool) -> None:
    if as_json:
        print_json({**_as_row(caller, time.time()), "apiKey": api_key})
        return
    click.echo(f"caller {caller.caller_id} ({caller.name}): {', '.join(sorted(caller.scopes))}")
    click.echo("API key, shown this once:", err=True)
    click.echo(api_key)
