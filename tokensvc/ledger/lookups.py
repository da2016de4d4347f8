"""Questions about what was issued, each answered from one index.

`Living` means not expired. Pages are ordered by (exp, row_id) and read by key, never by offset, so
the thousandth costs what the first does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Label,
    Row,
    Select,
    bindparam,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import StoreUnavailableError
from tokensvc.ledger.cursor import decode_cursor, encode_cursor
from tokensvc.ledger.row import CONNECTION, PARTICIPANT, TokenKind
from tokensvc.store.faults import store_faults
from tokensvc.store.many import Pace, in_pieces, is_one_of
from tokensvc.store.tables import issued_tokens as tokens
from tokensvc.store.tables import stage_endpoints
from tokensvc.tokens.claims import StageEndpoints
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS

__all__ = [
    "MAX_PAGE",
    "IssuedRecord",
    "KeyUse",
    "KeyUser",
    "Ledger",
    "Page",
    "latest_expiry_of",
    "living_tokens",
    "mark_disconnected",
    "newest_token",
    "newest_tokens",
]

MAX_PAGE: Final = 1000
MAX_KEY_USERS: Final = 1000

_log = structlog.get_logger(__name__)


class IssuedRecord(msgspec.Struct, frozen=True, gc=False):
    """A row of the ledger, as it was read; fields as in `LedgerRow`.

    `disconnected_at` is when IVS took the disconnect or the revocation of this token, Unix seconds.
    """

    row_id: int
    token_id: str
    kind: TokenKind
    stage_arn: str | None
    region: str
    user_id: str | None
    key_id: str | None
    key_arn: str | None
    caller_id: str | None
    issuer: str
    iat: int
    exp: int
    disconnected_at: float | None
    endpoints: StageEndpoints | None = None
    """Only where a single token was asked for."""
    lives_until: int = 0
    """The latest `exp` of all tokens with this `jti`; only where a single token was asked for."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, and the cursor of the next page (None: this is the last)."""

    tokens: tuple[IssuedRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class KeyUser:
    """How many living tokens of a key are one caller's, for one stage (None: connection tokens)."""

    stage_arn: str | None
    caller_id: str | None
    living: int
    latest_expiry: int


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What breaks when a key is deleted now: its living tokens, and whose they are, most first.

    `users` is cut after 1,000; `living` counts all.
    """

    living: int
    latest_expiry: int | None
    users: tuple[KeyUser, ...]


_RECORD_COLUMNS: Final = tuple(column for column in tokens.c if column.name != "endpoints_id")


class Ledger:
    """Reads the ledger. Every method raises StoreUnavailableError."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._newest_tokens = newest_tokens(engine.dialect.name)

    async def living(
        self,
        now: float,
        *,
        stage_arn: str | None = None,
        user_id: str | None = None,
        key_id: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Return living tokens that match every filter given, earliest expiry first.

        At most `limit` (1 to 1000). Raises InvalidRequestError for a cursor that does not fit. Of a
        damaged row, what cannot be read is filled in, and the log says so: a token that is not listed
        is not revoked. Rows without an expiry are all on the last page, up to `limit`.
        """
        limit = min(max(limit, 1), MAX_PAGE)
        selection = (stage_arn, user_id, key_id)
        filters, values = _filtered(now, stage_arn=stage_arn, user_id=user_id, key_id=key_id)
        values["at_most"] = limit + 1
        if cursor is not None:
            position = decode_cursor(cursor, selection)
            values |= {"after_exp": position.exp, "after_row_id": position.row_id}
        query = living_tokens(*filters, after=cursor is not None)
        rows = await self._all("list tokens", query, values)
        # SQLite sorts what is no number behind all numbers, and no cursor names a place there.
        dated = sum(_is_number(row.exp) for row in rows[:limit])
        of_page = rows[: dated or limit]
        records = tuple(_repaired(IssuedRecord(*tuple(row)), now) for row in of_page)
        if len(rows) == len(of_page) or not dated:
            return Page(records, None)
        return Page(records, encode_cursor(records[-1].exp, records[-1].row_id, selection))

    async def count_living(
        self,
        now: float,
        *,
        stage_arn: str | None = None,
        user_id: str | None = None,
        key_id: str | None = None,
    ) -> int:
        """Count living tokens; reads as many entries of an index as it counts."""
        filters, values = _filtered(now, stage_arn=stage_arn, user_id=user_id, key_id=key_id)
        query = select(func.count()).select_from(tokens).where(*_living(filters))
        return int((await self._all("count tokens", query, values))[0][0])

    async def latest(
        self, token_id: str, *, repaired_at: float | None = None
    ) -> IssuedRecord | None:
        """Return the newest token with this `jti`, with the endpoints it was signed with, or None.

        An exchange gives a participant a newer token under the same id. What IVS was told of any of
        them holds for all: `disconnected_at` is that of the last. A damaged row is a
        StoreUnavailableError; with `repaired_at`, the time in Unix seconds, it is filled in as by `living`.
        """
        rows = await self._all("find token", newest_token(token_id))
        return _latest(rows[0], repaired_at) if rows else None

    async def latest_of(self, token_ids: Sequence[str], pace: Pace) -> dict[str, IssuedRecord]:
        """Return, for each `jti` of many that the ledger knows, what `latest` does.

        It breathes at `pace`. One damaged row is a StoreUnavailableError for all.
        """
        found: dict[str, IssuedRecord] = {}
        for some in in_pieces(token_ids):
            of_some = {"of_tokens": some}
            for row in await self._all("find tokens", self._newest_tokens, of_some):
                if pace.spent():
                    await pace.breathe()
                record = _latest(row)
                found[record.token_id] = record
        return found

    async def last_expiries(self, token_ids: Sequence[str]) -> dict[str, int]:
        """Return the latest `exp` for each `jti` that the ledger knows; at most 1000 at once.

        One whose expiry is damaged is left out, as if the ledger did not know it.
        """
        query = (
            select(tokens.c.token_id, func.max(tokens.c.exp).label("last"))
            .where(tokens.c.token_id.in_(token_ids))
            .group_by(tokens.c.token_id)
        )
        rows = await self._all("find expiries", query)
        return {row.token_id: row.last for row in rows if _is_number(row.last)}

    async def latest_expiry(self, key_id: str) -> int | None:
        """Return the latest `exp` of all committed tokens of a key, or None.

        Final once the key has stopped signing everywhere and MAX_RECORD_SECONDS have passed.
        """
        rows = await self._all("find latest expiry", latest_expiry_of(key_id))
        if rows and not _is_number(rows[0].exp):
            raise _damaged(rows[0].row_id, key_id=key_id)
        return int(rows[0].exp) if rows else None

    async def key_use(self, key_id: str, now: float) -> KeyUse:
        """Return who holds living tokens of a key; reads all of them, seconds for millions."""
        filters, values = _filtered(now, key_id=key_id)
        living = func.count().label("living")
        latest = func.max(tokens.c.exp).label("latest_expiry")
        grouped = (
            select(tokens.c.stage_arn, tokens.c.caller_id, living, latest)
            .where(*_living(filters))
            .group_by(tokens.c.stage_arn, tokens.c.caller_id)
            .order_by(living.desc())
            .limit(MAX_KEY_USERS)
        )
        users = tuple(
            KeyUser(*tuple(row)) for row in await self._all("sum up key", grouped, values)
        )
        count = sum(user.living for user in users)
        if len(users) == MAX_KEY_USERS:
            count = await self.count_living(now, key_id=key_id)
        return KeyUse(count, await self.latest_expiry(key_id) if count else None, users)

    async def _all(
        self, operation: str, query: Select[Any], values: Mapping[str, object] | None = None
    ) -> list[Row[Any]]:
        with store_faults(operation):
            async with self._engine.connect() as connection:
                return list((await connection.execute(query, values)).all())


def mark_disconnected(connection: Connection, token_id: str, at: float) -> None:
    """Note that IVS has disconnected or revoked every token with this `jti`."""
    connection.execute(
        update(tokens).where(tokens.c.token_id == token_id).values(disconnected_at=at)
    )


@lru_cache(maxsize=16)
def living_tokens(*filters: str, after: bool = False) -> Select[Any]:
    """Return the query of a page, `at_most` so many living tokens whose `filters` are as `_filtered` says.

    With `after` they come after the row at (`after_exp`, `after_row_id`). To make it takes longer than
    SQLite takes to answer it.
    """
    place = (tokens.c.exp, tokens.c.row_id)
    query = (
        select(*_RECORD_COLUMNS)
        .where(*_living(filters))
        .order_by(*place)
        .limit(bindparam("at_most", type_=Integer))
    )
    if after:
        behind = (bindparam(f"after_{column.name}", type_=BigInteger) for column in place)
        query = query.where(tuple_(*place) > tuple_(*behind))
    return query


def newest_token(token_id: str) -> Select[Any]:
    """Return the query of the newest token with this `jti`, the endpoints in it, and until when one of
    that `jti` lives, and when one was last disconnected."""
    joined = tokens.outerjoin(
        stage_endpoints, stage_endpoints.c.endpoints_id == tokens.c.endpoints_id
    )
    return (
        select(
            *_RECORD_COLUMNS,
            stage_endpoints.c.events_url,
            stage_endpoints.c.whip_url,
            func.max(tokens.c.exp).over(),
            func.max(tokens.c.disconnected_at).over(),
        )
        .select_from(joined)
        .where(tokens.c.token_id == token_id)
        .order_by(tokens.c.row_id.desc())
        .limit(1)
    )


def newest_tokens(dialect: str) -> Select[Any]:
    """Return the query that is `newest_token` for each `jti` in the parameter `of_tokens`, in no order."""

    def of_token(column: Column[Any]) -> Label[Any]:
        return func.max(column).over(partition_by=tokens.c.token_id).label(f"last_{column.name}")

    rows = (
        select(tokens, *map(of_token, (tokens.c.row_id, tokens.c.exp, tokens.c.disconnected_at)))
        .where(is_one_of(tokens.c.token_id, "of_tokens", dialect))
        .subquery()
    )
    joined = rows.outerjoin(stage_endpoints, stage_endpoints.c.endpoints_id == rows.c.endpoints_id)
    return (
        select(
            *(rows.c[column.name] for column in _RECORD_COLUMNS),
            stage_endpoints.c.events_url,
            stage_endpoints.c.whip_url,
            rows.c.last_exp,
            rows.c.last_disconnected_at,
        )
        .select_from(joined)
        .where(rows.c.row_id == rows.c.last_row_id)
    )


def latest_expiry_of(key_id: str) -> Select[Any]:
    """Return the query of the latest `exp` of a key's tokens."""
    return (
        select(tokens.c.exp, tokens.c.row_id)
        .where(tokens.c.key_id == key_id)
        .order_by(tokens.c.exp.desc(), tokens.c.row_id.desc())
        .limit(1)
    )


def _filtered(now: float, **filters: str | None) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return which filters are given, and the values of `_living` under them."""
    given = {name: value for name, value in filters.items() if value is not None}
    return tuple(given), {"now": int(now), **{f"of_{name}": value for name, value in given.items()}}


def _living(filters: Iterable[str]) -> list[ColumnElement[bool]]:
    return [
        tokens.c.exp > bindparam("now"),
        *(tokens.c[name] == bindparam(f"of_{name}") for name in filters),
    ]


def _latest(row: Row[Any], repaired_at: float | None = None) -> IssuedRecord:
    """Return a row of `newest_token`, or of `newest_tokens`, as `latest` does."""
    *columns, events, whip, lives_until, disconnected_at = tuple(row)
    record = IssuedRecord(*columns)
    if repaired_at is not None:
        record = _repaired(record, repaired_at)
    elif _is_damaged(record) or not _is_number(lives_until):
        raise _damaged(record.row_id, token_id=record.token_id)
    return msgspec.structs.replace(
        record,
        disconnected_at=disconnected_at,
        lives_until=lives_until if _is_number(lives_until) else record.exp,
        endpoints=None if events is None else StageEndpoints(events, whip),
    )


def _is_damaged(record: IssuedRecord) -> bool:
    return record.kind not in (PARTICIPANT, CONNECTION) or not (
        _is_number(record.exp) and _is_number(record.iat)
    )


def _repaired(record: IssuedRecord, now: float) -> IssuedRecord:
    """Return a row so that whoever means the token finds it; SQLite stores any type in any column."""
    repairs: dict[str, Any] = {}
    if record.kind not in (PARTICIPANT, CONNECTION):
        repairs["kind"] = CONNECTION if record.stage_arn is None else PARTICIPANT
    if not _is_number(record.iat):
        repairs["iat"] = 0
    if not _is_number(record.exp):
        repairs["exp"] = int(now) + MAX_CONNECTION_TTL_SECONDS
    if record.disconnected_at is not None and not _is_number(record.disconnected_at):
        repairs["disconnected_at"] = None
    if not repairs:
        return record
    _log.error("ledger_row_damaged", row_id=record.row_id, taken_as=repairs)
    return msgspec.structs.replace(record, **repairs)


def _damaged(row_id: int, **context: Any) -> StoreUnavailableError:
    return StoreUnavailableError(f"Row {row_id} of the ledger is damaged.", **context)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
