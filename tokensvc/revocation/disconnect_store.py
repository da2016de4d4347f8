"""Disconnects in the database: what was asked, and the queue of calls to IVS that it comes to.

A request is stored, with its ban and its idempotency record, in one transaction, before it is
answered. The calls are a second table, since two requests that mean the same participant share one
call while that is pending; what is done stays as it was, for the request that asked for it.

Calls are made in the order of their rank: whoever is connected first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import structlog
from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import (
    FieldError,
    InvalidRequestError,
    NotFoundError,
    StoreUnavailableError,
)
from tokensvc.ledger import Claim, claim_all, mark_disconnected
from tokensvc.revocation.ban_store import add_ban
from tokensvc.revocation.bans import Ban
from tokensvc.revocation.disconnects import (
    CallState,
    Disconnect,
    DisconnectProgress,
    ParticipantProgress,
)
from tokensvc.revocation.schedule import SPACING_SECONDS
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import disconnect_calls as calls
from tokensvc.store.tables import disconnect_members as members
from tokensvc.store.tables import disconnects
from tokensvc.store.transactions import Transactions, insert_absent

__all__ = [
    "CONNECTED",
    "ISSUED",
    "NAMED",
    "WAITING",
    "DisconnectStore",
    "DueCall",
    "NewCall",
    "Operation",
    "QueueState",
]

Operation: TypeAlias = Literal["disconnect", "revoke"]

CONNECTED: Final = 0
"""IVS lists the participant as connected."""
NAMED: Final = 1
"""Asked for by its id or its user's."""
ISSUED: Final = 2
"""One of many: a token of a stage, with which nobody is connected, as far as is known."""
WAITING: Final = 3
"""IVS knew no such participant; its token lives and a ban stands, so it is tried again."""

WAITING_SHARE: Final = 0.2
"""Of the calls, while others are due: or those that wait would starve behind a full stage."""

MAX_PAGE: Final = 1000
_PURGED_AT_ONCE: Final = 200
_PURGED_CALLS_AT_ONCE: Final = 500

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_ENQUEUE_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to be made for a request, unless it is pending already.

    `exp` is when the token expires, Unix seconds, at the latest.
    """

    operation: Operation
    stage_arn: str
    target_id: str
    user_id: str | None
    rank: int
    exp: float

    @property
    def identity(self) -> tuple[str, str, str]:
        """What two pending calls must not have in common."""
        return (self.operation, self.stage_arn, self.target_id)


@dataclass(frozen=True, slots=True)
class QueueState:
    """A Region's queue: calls to be made, and those that wait for a participant to appear.

    `oldest_at` is when the oldest request with something still to be made came, Unix seconds; requests
    that only wait do not count.
    """

    due: int
    waiting: int
    oldest_at: float | None


@dataclass(frozen=True, slots=True)
class DueCall:
    """A call whose time has come; `attempts` were made before."""

    call_id: int
    region: str
    operation: Operation
    stage_arn: str
    target_id: str
    user_id: str | None
    reason: str
    rank: int
    attempts: int
    exp: float


_DUE_COLUMNS: Final = tuple(calls.c[name] for name in DueCall.__dataclass_fields__)


class DisconnectStore:
    """The requests and calls of all replicas; every method raises StoreUnavailableError."""

    def __init__(self, engine: AsyncEngine, transactions: Transactions) -> None:
        self._engine = engine
        self._transactions = transactions

    async def add(
        self,
        request: Disconnect,
        *,
        ban: Ban | None,
        first: NewCall | None,
        claim: Claim | None,
    ) -> tuple[Ban | None, str | None]:
        """Store a request with its ban, its first call and its claim, all or nothing.

        Returns the ban as stored, and None; or, where another request took the claim's key, None and
        that one's result. Raises IdempotencyConflictError.
        """

        def work(connection: Connection) -> tuple[Ban | None, str | None]:
            if claim is not None:
                late = claim_all(connection, [claim], request.created_at)
                if claim in late:
                    return None, late[claim].to(claim.ref)
            stored_ban = None if ban is None else add_ban(connection, ban)
            names = disconnects.c.keys()
            connection.execute(
                insert(disconnects).values({name: getattr(request, name) for name in names})
            )
            if first is not None:
                _enqueue(connection, request, [first], request.created_at)
            return stored_ban, None

        return await self._transactions.run("store disconnect", work)

    async def get(self, disconnect_id: str) -> Disconnect:
        """Return a request; raises NotFoundError."""
        rows = await self._all(
            select(disconnects).where(disconnects.c.disconnect_id == disconnect_id)
        )
        if not rows:
            raise NotFoundError("There is no such disconnect.")
        return _disconnect(rows[0])

    async def due_sweeps(self, region: str, now: float, limit: int) -> list[Disconnect]:
        """Return requests of which it is time to look for whom they mean, longest due first."""
        query = (
            select(disconnects)
            .where(disconnects.c.region == region, disconnects.c.next_sweep_at <= now)
            .order_by(disconnects.c.next_sweep_at)
            .limit(limit)
        )
        return [_disconnect(row) for row in await self._all(query)]

    async def enqueue(self, request: Disconnect, found: Sequence[NewCall], now: float) -> None:
        """Add calls for whom a request turned out to mean; those it has already are left alone."""
        await self._transactions.run(
            "enqueue calls", lambda connection: _enqueue(connection, request, found, now)
        )

    async def swept(
        self,
        request: Disconnect,
        *,
        next_sweep_at: float | None,
        error: str | None = None,
    ) -> None:
        """Note that a sweep was done, or failed with the code `error`, and when the next is due."""
        statement = (
            update(disconnects)
            .where(disconnects.c.disconnect_id == request.disconnect_id)
            .values(
                next_sweep_at=next_sweep_at,
                sweeps=request.sweeps + (error is None),
                failed_sweeps=0 if error is None else request.failed_sweeps + 1,
                last_error=error,
            )
        )
        await self._transactions.run("note sweep", lambda connection: connection.execute(statement))

    async def sweep_again(self, request: Disconnect, *, at: float) -> None:
        """Note that a sweep cannot be relied on, and when the next is due."""
        statement = (
            update(disconnects)
            .where(disconnects.c.disconnect_id == request.disconnect_id)
            .values(next_sweep_at=at)
        )
        await self._transactions.run(
            "put sweep off", lambda connection: connection.execute(statement)
        )

    async def due_calls(self, region: str, now: float, limit: int) -> list[DueCall]:
        """Return calls to make now, best first; a share of them from among those that wait."""
        waiting = max(1, round(limit * WAITING_SHARE))
        due = (
            select(*_DUE_COLUMNS)
            .where(
                calls.c.region == region,
                calls.c.state == "pending",
                calls.c.next_attempt_at <= now,
            )
            .order_by(calls.c.rank, calls.c.next_attempt_at)
        )
        first = await self._all(due.where(calls.c.rank < WAITING).limit(limit))
        room = limit - len(first) if len(first) < limit - waiting else waiting
        last = await self._all(due.where(calls.c.rank == WAITING).limit(room))
        found = first[: limit - len(last)] + last
        return [_due_call(row) for row in found]

    async def bring_forward(self, region: str, *, after: float, to: float) -> int:
        """Make due at `to` what is put off beyond `after`, Unix seconds; return how much that was."""
        late_calls = (
            update(calls)
            .where(calls.c.region == region, calls.c.state == "pending")
            .where(calls.c.next_attempt_at > after)
            .values(next_attempt_at=to)
        )
        # No number of ours, so it is in no order that calls are made in.
        unranked = (
            update(calls)
            .where(calls.c.region == region, calls.c.state == "pending", calls.c.rank > WAITING)
            .values(rank=NAMED)
        )
        late_sweeps = (
            update(disconnects)
            .where(disconnects.c.region == region, disconnects.c.next_sweep_at > after)
            .values(next_sweep_at=to)
        )
        return await self._transactions.run(
            "bring disconnects forward",
            lambda connection: sum(
                connection.execute(statement).rowcount
                for statement in (late_calls, unranked, late_sweeps)
            ),
        )

    async def settle(
        self, call: DueCall, state: CallState, *, attempts: int, error: str | None, now: float
    ) -> None:
        """Note how a call ended; where IVS took it, on the participant's tokens as well."""

        def work(connection: Connection) -> None:
            connection.execute(
                _pending(call).values(
                    state=state, attempts=attempts, last_error=error, updated_at=now
                )
            )
            if state == "disconnected":
                mark_disconnected(connection, call.target_id, now)

        await self._transactions.run("settle call", work)

    async def put_off(
        self,
        call: DueCall,
        *,
        until: float,
        attempts: int,
        error: str,
        now: float,
        waiting: bool = False,
    ) -> None:
        """Note that a call is to be made again at `until`; `waiting`, because IVS knew no such one."""
        values: dict[str, object] = {
            "attempts": attempts,
            "last_error": error,
            "next_attempt_at": until,
            "updated_at": now,
        }
        if waiting:
            values["rank"] = WAITING
        await self._transactions.run(
            "put call off", lambda connection: connection.execute(_pending(call).values(values))
        )

    async def is_pending(self, stage_arn: str, participant_id: str) -> bool:
        """Tell whether a participant is about to be disconnected."""
        query = select(calls.c.call_id).where(
            calls.c.operation == "disconnect",
            calls.c.stage_arn == stage_arn,
            calls.c.target_id == participant_id,
            calls.c.state == "pending",
        )
        return bool(await self._all(query.limit(1)))

    async def has_unmade_calls(self, request: Disconnect) -> bool:
        """Tell whether some of a request's calls of rank ISSUED are still to be made."""
        query = (
            select(calls.c.call_id)
            .join(members, members.c.call_id == calls.c.call_id)
            .where(
                members.c.disconnect_id == request.disconnect_id,
                calls.c.state == "pending",
                calls.c.rank == ISSUED,
            )
            .limit(1)
        )
        return bool(await self._all(query))

    async def queue_length(self, region: str) -> int:
        """Count the calls of a Region that are to be made, apart from those that wait."""
        query = (
            select(func.count())
            .select_from(calls)
            .where(calls.c.region == region, calls.c.state == "pending", calls.c.rank < WAITING)
        )
        return int((await self._all(query))[0][0])

    async def queue_state(self, region: str) -> QueueState:
        """Return how much is to be done in a Region, and since when."""
        of_region = (calls.c.region == region, calls.c.state == "pending")
        counted: Any = select(calls.c.rank, func.count()).where(*of_region).group_by(calls.c.rank)
        counts = {row[0]: int(row[1]) for row in map(tuple, await self._all(counted))}
        waiting = counts.pop(WAITING, 0)
        of_calls = (
            select(func.min(disconnects.c.created_at))
            .join(members, members.c.disconnect_id == disconnects.c.disconnect_id)
            .join(calls, calls.c.call_id == members.c.call_id)
            .where(*of_region, calls.c.rank < WAITING)
        )
        # A first sweep is due at once; those after it are looks back.
        of_sweeps = select(func.min(disconnects.c.created_at)).where(
            disconnects.c.region == region,
            disconnects.c.next_sweep_at.is_not(None),
            disconnects.c.sweeps == 0,
        )
        oldest = [(await self._all(query))[0][0] for query in (of_calls, of_sweeps)]
        moments = [moment for moment in oldest if moment is not None]
        return QueueState(sum(counts.values()), waiting, min(moments, default=None))

    async def progress(
        self, disconnect_id: str, *, now: float, cursor: str | None = None, limit: int = 100
    ) -> DisconnectProgress:
        """Return where a request stands, with a page of its participants (at most 1000).

        Raises NotFoundError, and InvalidRequestError for a cursor that is none.
        """
        after = _cursor(cursor)
        limit = min(max(limit, 1), MAX_PAGE)
        request = await self.get(disconnect_id)
        of_request = (
            calls.join(members, members.c.call_id == calls.c.call_id),
            members.c.disconnect_id == disconnect_id,
        )
        grouped = (
            select(calls.c.state, calls.c.rank, func.count(), func.max(calls.c.exp))
            .select_from(of_request[0])
            .where(of_request[1])
            .group_by(calls.c.state, calls.c.rank)
        )
        page = (
            select(calls)
            .select_from(of_request[0])
            .where(of_request[1], calls.c.call_id > after)
            .order_by(calls.c.call_id)
            .limit(limit + 1)
        )
        groups = [tuple(row) for row in await self._all(grouped)]
        rows = await self._all(page)
        counts: dict[CallState, int] = {}
        for state, _, count, _ in groups:
            counts[state] = counts.get(state, 0) + count
        done = request.next_sweep_at is None and counts.get("pending", 0) == 0
        expected = None if done else await self._expected(request, groups, now)
        more = len(rows) > limit
        return DisconnectProgress(
            disconnect=request,
            done=done,
            counts=counts,
            expected_completion=expected,
            participants=tuple(_progress(row) for row in rows[:limit]),
            next_cursor=str(rows[limit - 1].call_id) if more else None,
        )

    async def _expected(
        self, request: Disconnect, groups: Sequence[tuple[Any, ...]], now: float
    ) -> float:
        """Return when a request is expected to be done: its Region's queue at its pace.

        Those that wait for a participant to appear are done when their tokens expire.
        """
        moments = [now + SPACING_SECONDS * await self.queue_length(request.region)]
        if request.next_sweep_at is not None:
            moments.append(request.next_sweep_at)
        moments += [
            exp
            for state, rank, _, exp in groups
            if state == "pending" and rank == WAITING and _is_number(exp)
        ]
        return max(moments)

    async def purge(self, before: float) -> int:
        """Delete some rows of requests made before `before` that are done; return how many.

        A stage may have had thousands of participants, so a request goes in slices, itself last.
        """
        pending = (
            select(members.c.disconnect_id)
            .join(calls, calls.c.call_id == members.c.call_id)
            .where(
                members.c.disconnect_id == disconnects.c.disconnect_id,
                calls.c.state == "pending",
            )
        )
        due = (
            select(disconnects.c.disconnect_id)
            .where(
                disconnects.c.created_at < before,
                disconnects.c.next_sweep_at.is_(None),
                ~pending.exists(),
            )
            .limit(_PURGED_AT_ONCE)
        )
        # Read before the write lock is taken; what is done stays done.
        ids = [row.disconnect_id for row in await self._all(due)]
        if not ids:
            return 0
        return await self._transactions.run(
            "purge disconnects", lambda connection: _delete_slice(connection, ids)
        )

    async def _all(self, query: Select[Any]) -> list[Row[Any]]:
        with store_faults("read disconnects"):
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).all())


def _enqueue(
    connection: Connection, request: Disconnect, found: Sequence[NewCall], now: float
) -> None:
    ended = _ended(connection, request, [call.target_id for call in found])
    wanted = [call for call in found if not _is_handled(call, ended.get(call.identity))]
    if not wanted:
        return
    stored = _pending_rows(connection, request, wanted, now)
    for call in wanted:
        row = stored[call.identity]
        if call.rank < row.rank or call.exp > row.exp:
            sooner = call.rank < row.rank
            connection.execute(
                update(calls)
                .where(calls.c.call_id == row.call_id)
                .values(
                    rank=min(call.rank, row.rank),
                    exp=max(call.exp, row.exp),
                    next_attempt_at=now if sooner else row.next_attempt_at,
                )
            )
    insert_absent(
        connection,
        members,
        [
            {
                "disconnect_id": request.disconnect_id,
                "call_id": stored[call.identity].call_id,
            }
            for call in wanted
        ],
    )
    again = [ended[call.identity].call_id for call in wanted if call.identity in ended]
    if again:
        # One participant has one state, the new one.
        of_request = members.c.disconnect_id == request.disconnect_id
        connection.execute(delete(members).where(of_request, members.c.call_id.in_(again)))
        _delete_calls_of_none(connection, again)


def _pending_rows(
    connection: Connection, request: Disconnect, wanted: Sequence[NewCall], now: float
) -> dict[tuple[str, str, str], Row[Any]]:
    """Return the pending row of each call, made where there was none, and locked against its end.

    On PostgreSQL another replica may settle a row after it stood in the way of ours and before we lock
    it; then there is room for ours. In the order of the index, so that two replicas do not deadlock.
    """
    query = (
        select(calls)
        .where(calls.c.state == "pending", calls.c.target_id.in_([c.target_id for c in wanted]))
        .with_for_update()
    )
    stored: dict[tuple[str, str, str], Row[Any]] = {}
    missing = sorted(wanted, key=lambda call: call.identity)
    for _ in range(_ENQUEUE_ATTEMPTS):
        insert_absent(connection, calls, [_new_row(request, call, now) for call in missing])
        stored = {
            (row.operation, row.stage_arn, row.target_id): row for row in connection.execute(query)
        }
        missing = [call for call in missing if call.identity not in stored]
        if not missing:
            return stored
    raise StoreUnavailableError("The queue of disconnects changes too fast.", retry_after=1.0)


def _new_row(request: Disconnect, call: NewCall, now: float) -> dict[str, object]:
    return {
        "region": request.region,
        "operation": call.operation,
        "stage_arn": call.stage_arn,
        "target_id": call.target_id,
        "user_id": call.user_id,
        "reason": request.reason,
        "rank": call.rank,
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": now,
        "exp": call.exp,
        "updated_at": now,
    }


class _Ended(NamedTuple):
    call_id: int
    state: str


def _ended(
    connection: Connection, request: Disconnect, target_ids: Collection[str]
) -> dict[tuple[str, str, str], _Ended]:
    """Return those of a request's calls that are over."""
    query = (
        select(
            calls.c.call_id, calls.c.operation, calls.c.stage_arn, calls.c.target_id, calls.c.state
        )
        .join(members, members.c.call_id == calls.c.call_id)
        .where(
            members.c.disconnect_id == request.disconnect_id,
            calls.c.state != "pending",
            calls.c.target_id.in_(target_ids),
        )
    )
    return {
        (operation, stage_arn, target_id): _Ended(call_id, state)
        for call_id, operation, stage_arn, target_id, state in connection.execute(query)
    }


def _is_handled(call: NewCall, ended: _Ended | None) -> bool:
    """Tell whether nothing is left to be done for a call, since one like it is over.

    IVS may list for a while who was disconnected. Whom it lists after "not connected", or after the
    token has expired before its turn came, has joined in between.
    """
    if ended is None:
        return False
    return call.rank != CONNECTED or ended.state in {"disconnected", "failed"}


def _pending(call: DueCall) -> Any:
    return update(calls).where(calls.c.call_id == call.call_id, calls.c.state == "pending")


def _delete_slice(connection: Connection, ids: Sequence[str]) -> int:
    of_requests = members.c.disconnect_id.in_(ids)
    some = select(members.c.call_id).where(of_requests).distinct().limit(_PURGED_CALLS_AT_ONCE)
    call_ids = connection.execute(some).scalars().all()
    if not call_ids:
        return connection.execute(
            delete(disconnects).where(disconnects.c.disconnect_id.in_(ids))
        ).rowcount
    gone = connection.execute(delete(members).where(of_requests, members.c.call_id.in_(call_ids)))
    _delete_calls_of_none(connection, call_ids)
    return gone.rowcount


def _delete_calls_of_none(connection: Connection, call_ids: Sequence[int]) -> None:
    still = select(members.c.call_id).where(members.c.call_id == calls.c.call_id)
    connection.execute(delete(calls).where(calls.c.call_id.in_(call_ids), ~still.exists()))


def _disconnect(row: Row[Any]) -> Disconnect:
    """Return a stored request; what is damaged of it (SQLite stores any type) must not stop the others."""
    fields = {name: getattr(row, name) for name in Disconnect.__dataclass_fields__}
    due = fields["next_sweep_at"]
    if due is not None and not _is_number(due):
        fields["next_sweep_at"] = _repaired(row.disconnect_id, "next_sweep_at", 0.0)
    otherwise = {"created_at": fields["next_sweep_at"] or 0.0, "sweeps": 0, "failed_sweeps": 0}
    for name, value in otherwise.items():
        if not _is_number(fields[name]):
            fields[name] = _repaired(row.disconnect_id, name, value)
    return Disconnect(**fields)


def _due_call(row: Row[Any]) -> DueCall:
    call = DueCall(*tuple(row))
    if not _is_number(call.exp):
        # It is made until IVS has taken it: better once too often than never.
        call = replace(call, exp=_repaired(call.call_id, "exp", math.inf))
    if not _is_number(call.attempts):
        call = replace(call, attempts=_repaired(call.call_id, "attempts", 0))
    return call


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _repaired(row_id: object, column: str, value: T) -> T:
    _log.error("disconnect_damaged", row=row_id, column=column, taken_as=value)
    return value


def _progress(row: Row[Any]) -> ParticipantProgress:
    return ParticipantProgress(
        target_id=row.target_id,
        operation=cast("Operation", row.operation),
        state=cast("CallState", row.state),
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at if row.state == "pending" else None,
        last_error=row.last_error,
        updated_at=row.updated_at,
    )


def _cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        reason = "is not a cursor of this service"
        raise InvalidRequestError(
            f"cursor: {reason}", errors=(FieldError("cursor", "invalid", reason),)
        )
    return int(cursor)
