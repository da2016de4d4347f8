"""Callers in the database: one row per caller, one per secret, and the feed that replicas poll.

The first statement of every change raises the feed's version. It takes that row's lock (PostgreSQL)
or the write lock (SQLite), so changes happen one after the other, what a change reads is what the one
before it left, and a version that a replica has seen covers everything it has read since.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any, Final

import structlog
from sqlalchemy import Row, Select, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tokensvc.callers.api_key import ApiKey, new_caller_id
from tokensvc.callers.record import (
    MAX_CALLERS,
    MAX_SECRETS,
    Caller,
    CallerSecret,
    check_expiry,
    check_name,
    check_overlap,
    invalid,
)
from tokensvc.callers.scopes import Scope, parse_scopes
from tokensvc.errors import NotFoundError, StoreUnavailableError
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import caller_secrets, callers, feeds

__all__ = ["SqlCallerStore"]

FEED: Final = "callers"
_SLICE: Final = 100
"""Callers that are read between two turns of the event loop: about a millisecond."""
_KNOWN_SCOPES: Final = {scope.value: scope for scope in Scope}

_log = structlog.get_logger(__name__)


class SqlCallerStore:
    """A `CallerStore` over the tables `callers` and `caller_secrets`."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    async def add(
        self, name: str, scopes: Iterable[str], expires_at: float | None = None
    ) -> tuple[Caller, ApiKey]:
        """Store a new caller with its first secret; see CallerStore."""
        now = self._clock()
        api_key = ApiKey.new(new_caller_id())
        caller = Caller(
            caller_id=api_key.caller_id,
            name=check_name(name),
            scopes=parse_scopes(scopes),
            created_at=now,
            expires_at=check_expiry(expires_at, now),
            secrets=(CallerSecret(api_key.secret_sha256, now),),
        )
        async with self._change("add caller") as connection:
            await _check_room(connection)
            taken = select(callers.c.revoked_at).where(callers.c.name == name)
            row = (await connection.execute(taken)).one_or_none()
            if row is not None:
                of_whom = "a caller" if row.revoked_at is None else "a revoked caller"
                raise invalid("name", "taken", f"is the name of {of_whom}")
            await connection.execute(insert(callers).values(_values(caller)))
            await _insert_secret(connection, caller.caller_id, caller.secrets[0])
        return caller, api_key

    async def list(self, *, revoked: bool = True) -> tuple[Caller, ...]:
        """Return the callers by name; see CallerStore.

        A row that makes no sense is left out and logged: it must lock out no other caller, nor keep
        another's revocation from being seen.
        """
        selection = _selection()
        if not revoked:
            selection = selection.where(callers.c.revoked_at.is_(None))
        with store_faults("list callers"):
            async with self._engine.connect() as connection:
                rows = (await connection.execute(selection)).all()
        found: list[Caller] = []
        for caller in _assemble(rows):
            found.append(caller)
            if len(found) % _SLICE == 0:
                await asyncio.sleep(0)
        return tuple(found)

    async def rotate(
        self, caller: str, *, old_valid_until: float, restart: bool = False
    ) -> tuple[Caller, ApiKey]:
        """Give the caller a new secret; see CallerStore."""
        now = self._clock()
        check_overlap(old_valid_until, now)
        async with self._change("rotate caller") as connection:
            found = await _find(connection, caller)
            state = found.state(now)
            if state != "active":
                raise invalid("caller", state, f"{found.name} is {state}; add a new one")
            api_key = ApiKey.new(found.caller_id)
            kept = _kept(found, now, old_valid_until, restart=restart)
            secret = CallerSecret(api_key.secret_sha256, now)
            await connection.execute(
                delete(caller_secrets).where(caller_secrets.c.caller_id == found.caller_id)
            )
            for one in (*kept, secret):
                await _insert_secret(connection, found.caller_id, one)
        return dataclasses.replace(found, secrets=(*kept, secret)), api_key

    async def revoke(self, caller: str) -> Caller:
        """Revoke the caller; see CallerStore."""
        async with self._change("revoke caller") as connection:
            found = await _find(connection, caller)
            if found.revoked_at is None:
                found = dataclasses.replace(found, revoked_at=self._clock(), secrets=())
                where = callers.c.caller_id == found.caller_id
                await connection.execute(
                    update(callers).where(where).values(revoked_at=found.revoked_at)
                )
            # What must not be used again must not be there to be used.
            await connection.execute(
                delete(caller_secrets).where(caller_secrets.c.caller_id == found.caller_id)
            )
        return found

    async def version(self) -> int:
        """Return the feed's version; see CallerStore."""
        with store_faults("read caller feed"):
            async with self._engine.connect() as connection:
                selection = select(feeds.c.version).where(feeds.c.name == FEED)
                version = (await connection.execute(selection)).scalar()
        if version is None:
            raise _no_feed()
        return int(version)

    @asynccontextmanager
    async def _change(self, operation: str) -> AsyncIterator[AsyncConnection]:
        with store_faults(operation):
            async with self._engine.begin() as connection:
                raised = await connection.execute(
                    update(feeds).where(feeds.c.name == FEED).values(version=feeds.c.version + 1)
                )
                if raised.rowcount != 1:
                    raise _no_feed()
                yield connection


def _no_feed() -> StoreUnavailableError:
    return StoreUnavailableError(f"The database is damaged: it has no feed named {FEED}.")


def _kept(
    caller: Caller, now: float, old_valid_until: float, *, restart: bool
) -> tuple[CallerSecret, ...]:
    """Return the secrets that stay beside the new one, with their new end."""
    if old_valid_until <= now:
        return ()
    valid = caller.valid_secrets(now)
    if len(valid) == MAX_SECRETS and not restart:
        raise invalid(
            "caller",
            "changing_over",
            f"{caller.name} holds two secrets until the older one ends; wait for that, or restart"
            " the rotation (the newer one goes), or let both end at once",
            MAX_SECRETS,
        )
    return tuple(dataclasses.replace(secret, expires_at=old_valid_until) for secret in valid[:1])


async def _check_room(connection: AsyncConnection) -> None:
    counting = select(func.count()).select_from(callers).where(callers.c.revoked_at.is_(None))
    if (await connection.execute(counting)).scalar_one() >= MAX_CALLERS:
        detail = f"there are {MAX_CALLERS} already; revoke some that are not needed"
        raise invalid("callers", "too_many", detail, MAX_CALLERS)


async def _find(connection: AsyncConnection, id_or_name: str) -> Caller:
    selection = _selection().where(
        or_(callers.c.caller_id == id_or_name, callers.c.name == id_or_name)
    )
    found = tuple(_assemble((await connection.execute(selection)).all()))
    if not found:
        # What was asked for is not repeated: it may be an API key, pasted for its id.
        raise NotFoundError("There is no caller with this id or name.")
    return found[0]


async def _insert_secret(connection: AsyncConnection, caller_id: str, secret: CallerSecret) -> None:
    await connection.execute(
        insert(caller_secrets).values(
            caller_id=caller_id,
            secret_sha256=secret.sha256,
            created_at=secret.created_at,
            expires_at=secret.expires_at,
        )
    )


def _selection() -> Select[Any]:
    # One statement, so that a caller and its secrets are of one moment on every engine.
    return (
        select(
            callers,
            caller_secrets.c.secret_sha256,
            caller_secrets.c.created_at.label("secret_created_at"),
            caller_secrets.c.expires_at.label("secret_expires_at"),
        )
        .select_from(callers.outerjoin(caller_secrets))
        .order_by(callers.c.name)
    )


def _values(caller: Caller) -> dict[str, object]:
    return {
        "caller_id": caller.caller_id,
        "name": caller.name,
        "scopes": " ".join(sorted(caller.scopes)),
        "created_at": caller.created_at,
        "expires_at": caller.expires_at,
        "revoked_at": caller.revoked_at,
    }


def _assemble(rows: Iterable[Row[Any]]) -> Iterable[Caller]:
    for caller_id, group in groupby(rows, key=lambda row: row.caller_id):
        try:
            yield _caller(tuple(group))
        except ValueError as error:
            _log.error("caller_row_damaged", caller=caller_id, reason=str(error))


def _caller(rows: tuple[Row[Any], ...]) -> Caller:
    first = rows[0]
    return Caller(
        caller_id=first.caller_id,
        name=first.name,
        # A scope that only a newer replica knows permits nothing here.
        scopes=frozenset(
            _KNOWN_SCOPES[text] for text in first.scopes.split() if text in _KNOWN_SCOPES
        ),
        created_at=first.created_at,
        expires_at=first.expires_at,
        revoked_at=first.revoked_at,
        secrets=_secrets(rows),
    )


def _secrets(rows: tuple[Row[Any], ...]) -> tuple[CallerSecret, ...]:
    # The outer join gives a caller without secrets one row of nothing.
    held = (
        CallerSecret(row.secret_sha256, row.secret_created_at, row.secret_expires_at)
        for row in rows
        if row.secret_sha256 is not None
    )
    # Of two, the one that ends is the older; when they were made is only what a clock said.
    return tuple(sorted(held, key=lambda one: (one.expires_at is None, one.created_at)))
