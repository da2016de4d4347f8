"""Bans in the database, with the feed that tells replicas what changed.

Every change raises the feed's version first. That takes the row's lock (PostgreSQL) or the write lock
(SQLite), so versions become visible in their order, and whoever has read up to a version has missed
nothing before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import structlog
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import NotFoundError, StoreUnavailableError
from tokensvc.ledger import Claim, claim_all
from tokensvc.revocation.bans import Ban, BanChanges, BanKind
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import bans, feeds
from tokensvc.store.transactions import Transactions

__all__ = ["FEED", "MAX_LIFTED", "BanStore", "add_ban"]

FEED: Final = "bans"
_AT_ONCE: Final = 500
MAX_LIFTED: Final = 100
"""Bans that one call lifts; each is a change of its own in the feed."""
TOMBSTONE_SECONDS: Final = 86_400.0
"""How long an ended ban stays stored: longer than any replica may go on without a refresh."""

_log = structlog.get_logger(__name__)


class BanStore:
    """The bans of all replicas; every method raises StoreUnavailableError. `clock`: Unix seconds."""

    def __init__(
        self, engine: AsyncEngine, transactions: Transactions, clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._transactions = transactions
        self._clock = clock

    async def add(self, ban: Ban, claim: Claim | None = None) -> Ban | str:
        """Store a ban and return it with its version.

        Where another request took the claim's key, nothing is stored and that one's result is
        returned. Raises IdempotencyConflictError.
        """

        def work(connection: Connection) -> Ban | str:
            if claim is not None:
                late = claim_all(connection, [claim], ban.created_at)
                if claim in late:
                    return late[claim].to(claim.ref)
            return add_ban(connection, ban)

        return await self._transactions.run("add ban", work)

    async def lift(self, ban_id: str) -> Ban:
        """Lift a ban; one that is lifted already stays so. Raises NotFoundError."""
        now = self._clock()

        def work(connection: Connection) -> Ban:
            lifted = _lift(connection, ban_id, now)
            if lifted is None:
                raise NotFoundError("There is no such ban.")
            return lifted

        return await self._transactions.run("lift ban", work)

    async def lift_of(
        self, stage_arn: str | None, user_id: str | None, participant_id: str | None
    ) -> tuple[Ban, ...]:
        """Lift the bans that stand against exactly this, up to MAX_LIFTED at once; return them."""
        now = self._clock()
        same = (
            select(bans.c.ban_id)
            .where(
                *_stands(now),
                *(
                    column.is_(None) if value is None else column == value
                    for column, value in (
                        (bans.c.stage_arn, stage_arn),
                        (bans.c.user_id, user_id),
                        (bans.c.participant_id, participant_id),
                    )
                ),
            )
            .order_by(bans.c.ban_id)
            .limit(MAX_LIFTED)
        )

        def work(connection: Connection) -> tuple[Ban, ...]:
            ids = connection.execute(same).scalars().all()
            lifted = [_lift(connection, ban_id, now) for ban_id in ids]
            return tuple(ban for ban in lifted if ban is not None)

        return await self._transactions.run("lift bans", work)

    async def get(self, ban_id: str) -> Ban | None:
        """Return a ban, lifted or not, or None where there is none (any more)."""
        rows = await self._all(select(bans).where(bans.c.ban_id == ban_id))
        return _ban(rows[0]) if rows else None

    async def standing(
        self,
        *,
        stage_arn: str | None = None,
        user_id: str | None = None,
        participant_id: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> tuple[Ban, ...]:
        """Return bans that stand now, by id, beginning after the id `after`."""
        query = (
            select(bans)
            .where(bans.c.ban_id > after, *_stands(self._clock()))
            .order_by(bans.c.ban_id)
            .limit(limit)
        )
        for column, value in (
            (bans.c.stage_arn, stage_arn),
            (bans.c.user_id, user_id),
            (bans.c.participant_id, participant_id),
        ):
            if value is not None:
                query = query.where(column == value)
        return tuple(_ban(row) for row in await self._all(query))

    async def version(self) -> int:
        """Return the feed's version."""
        rows = await self._all(select(feeds.c.version).where(feeds.c.name == FEED))
        if not rows:
            raise StoreUnavailableError("The feed of bans is missing from the database.")
        return int(rows[0][0])

    async def changes(self, after: int) -> BanChanges:
        """Return up to 500 bans that changed after version `after`, oldest change first."""
        query = select(bans).where(bans.c.version > after).order_by(bans.c.version).limit(_AT_ONCE)
        rows = await self._all(query)
        found = tuple(_ban(row) for row in rows)
        last_version = max((ban.version for ban in found), default=after)
        return BanChanges(found, last_version, complete=len(rows) < _AT_ONCE)

    async def purge(self) -> int:
        """Delete bans that ended, or were lifted, more than a day ago; return how many."""
        before = self._clock() - TOMBSTONE_SECONDS
        due: Any = (
            select(bans.c.ban_id)
            .where(or_(bans.c.until <= before, bans.c.lifted_at <= before))
            .limit(_AT_ONCE)
        )
        statement = delete(bans).where(bans.c.ban_id.in_(due))
        return await self._transactions.run(
            "purge bans", lambda connection: connection.execute(statement).rowcount
        )

    async def _all(self, query: Select[Any]) -> list[Row[Any]]:
        with store_faults("read bans"):
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).all())


def add_ban(connection: Connection, ban: Ban) -> Ban:
    """Store a ban in a transaction of the caller's, and return it with its version."""
    version = _next_version(connection)
    values = {name: getattr(ban, name) for name in bans.c.keys()} | {"version": version}  # noqa: SIM118
    row = connection.execute(insert(bans).values(values).returning(*bans.c)).one()
    return _ban(row)


def _stands(now: float) -> tuple[ColumnElement[bool], ...]:
    return (bans.c.lifted_at.is_(None), or_(bans.c.until.is_(None), bans.c.until > now))


def _lift(connection: Connection, ban_id: str, now: float) -> Ban | None:
    version = _next_version(connection)
    changed = update(bans).where(bans.c.ban_id == ban_id, bans.c.lifted_at.is_(None))
    connection.execute(changed.values(lifted_at=now, version=version))
    row = connection.execute(select(bans).where(bans.c.ban_id == ban_id)).one_or_none()
    return None if row is None else _ban(row)


def _next_version(connection: Connection) -> int:
    raised = update(feeds).where(feeds.c.name == FEED).values(version=feeds.c.version + 1)
    version = connection.execute(raised.returning(feeds.c.version)).scalar()
    if version is None:
        raise StoreUnavailableError("The feed of bans is missing from the database.")
    return int(version)


def _ban(row: Row[Any]) -> Ban:
    # In the order of the table's columns; a hundred thousand of them are read before the first mint.
    values = cast("Sequence[Any]", row)
    ban_id, version, kind, stage_arn, user_id, participant_id = values[:6]
    until, reason, caller_id, created_at, lifted_at = values[6:]
    found = _kind(stage_arn, user_id, participant_id)
    if found != kind:
        _log.error("ban_damaged", ban_id=ban_id, column="kind")
    return Ban(
        ban_id,
        found,
        _shared(stage_arn),
        user_id,
        participant_id,
        # A ban whose end, or lift, cannot be read goes on: better one user too many out than one too few.
        _number(ban_id, "until", until, None),
        _shared(reason),
        _shared(caller_id),
        _number(ban_id, "created_at", created_at, 0.0) or 0.0,
        int(_number(ban_id, "version", version, 0) or 0),
        _number(ban_id, "lifted_at", lifted_at, None),
    )


def _shared(text: Any) -> Any:
    """Return the text that other bans have as well: of a hundred thousand, most are of few stages."""
    return sys.intern(text) if type(text) is str else text


def _number(ban_id: str, column: str, value: Any, otherwise: float | None) -> float | None:
    """Return a number of a row; SQLite stores any type, and one damaged ban must not hide the others."""
    if value is None or isinstance(value, (int, float)):
        return value
    _log.error("ban_damaged", ban_id=ban_id, column=column)
    return otherwise


def _kind(stage_arn: str | None, user_id: str | None, participant_id: str | None) -> BanKind:
    if participant_id is not None:
        return "participant"
    if user_id is not None:
        return "user" if stage_arn is None else "user_on_stage"
    return "stage"
