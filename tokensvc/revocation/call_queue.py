"""The queue of calls to IVS in the database: what is due, and what became of it.

`folding.py` lets calls in. They are made in the order of their rank, by the one worker of their Region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.ledger import mark_disconnected
from tokensvc.revocation.calls import (
    CONNECTED,
    FIRST,
    ISSUED,
    WAITING,
    DueCall,
    NewCall,
    QueueState,
)
from tokensvc.revocation.damage import is_number, repaired
from tokensvc.revocation.disconnects import CallState, Disconnect
from tokensvc.revocation.folding import fold_in
from tokensvc.store.faults import store_faults
from tokensvc.store.many import in_pieces, is_one_of
from tokensvc.store.tables import disconnect_calls as calls
from tokensvc.store.tables import disconnect_members as members
from tokensvc.store.tables import disconnects
from tokensvc.store.transactions import Transactions

__all__ = ["CallQueue", "count_ahead"]

LEAST_SHARE: Final = 0.2
"""Of the calls, while others are due: or a stage that is being emptied would starve behind those who are
asked for one by one, and those that wait behind a full stage."""

_DUE_COLUMNS: Final = tuple(calls.c[name] for name in DueCall.__dataclass_fields__)


class CallQueue:
    """The calls of all replicas; every method raises StoreUnavailableError."""

    def __init__(self, engine: AsyncEngine, transactions: Transactions) -> None:
        self._engine = engine
        self._transactions = transactions
        self._pending_calls = pending_calls(engine.dialect.name)

    async def enqueue(self, request: Disconnect, found: Sequence[NewCall], now: float) -> None:
        """Add calls for whom a request turned out to mean; those it has already are left alone."""
        await self._transactions.run(
            "enqueue calls", lambda connection: fold_in(connection, request, found, now)
        )

    async def due_calls(self, region: str, now: float, limit: int) -> list[DueCall]:
        """Return up to `limit` (3 or more) calls to make now, best first.

        There is a share of them for those asked for one by one, for stages, and for those that wait.
        """
        share = max(1, round(limit * LEAST_SHARE))
        due = (
            select(*_DUE_COLUMNS)
            .where(
                calls.c.region == region,
                calls.c.state == "pending",
                calls.c.next_attempt_at <= now,
            )
            .order_by(calls.c.rank, calls.c.next_attempt_at)
        )
        kinds = [
            await self._all(due.where(of_kind).limit(limit))
            for of_kind in (
                calls.c.rank < CONNECTED,
                calls.c.rank.between(CONNECTED, ISSUED),
                calls.c.rank == WAITING,
            )
        ]
        found: list[Row[Any]] = []
        for number, rows in enumerate(kinds):
            kept = sum(min(len(later), share) for later in kinds[number + 1 :])
            found += rows[: limit - len(found) - kept]
        return [_due_call(row) for row in found]

    async def bring_forward(self, region: str, *, after: float, to: float) -> int:
        """Make due at `to` what is put off beyond `after`, Unix seconds; return how much that was."""
        of_region = (calls.c.region == region, calls.c.state == "pending")
        late = (
            update(calls)
            .where(*of_region, calls.c.next_attempt_at > after)
            .values(next_attempt_at=to)
        )
        # No number of ours, so it is in no order that calls are made in.
        unranked = update(calls).where(*of_region, calls.c.rank > WAITING).values(rank=FIRST)
        return await self._transactions.run(
            "bring calls forward",
            lambda connection: sum(
                connection.execute(statement).rowcount for statement in (late, unranked)
            ),
        )

    async def settle(
        self, call: DueCall, state: CallState, *, attempts: int, error: str | None, now: float
    ) -> None:
        """Note how a call ended; where IVS took it, on the participant's tokens as well."""

        def work(connection: Connection) -> None:
            row = _pending(call)
            if state in {"not_connected", "expired"}:
                # Of who has asked meanwhile that says nothing: the call is made once more.
                row = row.where(calls.c.updated_at == call.updated_at)
            connection.execute(
                row.values(state=state, attempts=attempts, last_error=error, updated_at=now)
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

    async def pending_of(
        self, named: Sequence[tuple[str | None, str]]
    ) -> set[tuple[str | None, str]]:
        """Return which of some participants, named by stage and id, are about to be disconnected.

        Without a stage it is a connection token that is about to be revoked.
        """
        found: set[tuple[str | None, str]] = set()
        for some in in_pieces(named):
            wanted = {_identity(*one): one for one in some}
            parts = (list(set(part)) for part in zip(*wanted, strict=True))
            values = dict(zip(("of_operations", "of_stages", "of_targets"), parts, strict=True))
            rows = await self._all(self._pending_calls, values)
            found.update(wanted[row] for row in map(tuple, rows) if row in wanted)
        return found

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

    async def ahead(self, request: Disconnect) -> int:
        """Count the calls that come before those of a request, and its own, but for those that wait."""
        return int((await self._all(count_ahead(request)))[0][0])

    async def state(self, region: str) -> QueueState:
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

    async def _all(
        self, query: Select[Any], values: Mapping[str, object] | None = None
    ) -> list[Row[Any]]:
        with store_faults("read calls"):
            async with self._engine.connect() as connection:
                return list((await connection.execute(query, values)).all())


def count_ahead(request: Disconnect) -> Select[Any]:
    """Return the query of `CallQueue.ahead`."""
    below = WAITING if request.kind in {"stage", "key"} else CONNECTED
    return (
        select(func.count())
        .select_from(calls)
        .where(calls.c.region == request.region, calls.c.state == "pending", calls.c.rank < below)
    )


def pending_calls(dialect: str) -> Select[Any]:
    """Return the query of what is to be called of `of_targets`, on `of_stages`, by `of_operations`.

    A target on another one's stage is found as well. The state is no parameter, so that the database
    sees which index answers.
    """
    return select(calls.c.operation, calls.c.stage_arn, calls.c.target_id).where(
        is_one_of(calls.c.operation, "of_operations", dialect),
        is_one_of(calls.c.stage_arn, "of_stages", dialect),
        is_one_of(calls.c.target_id, "of_targets", dialect),
        calls.c.state == literal_column("'pending'"),
    )


def _identity(stage_arn: str | None, token_id: str) -> tuple[str, str, str]:
    return ("revoke" if stage_arn is None else "disconnect", stage_arn or "", token_id)


def _pending(call: DueCall) -> Any:
    return update(calls).where(calls.c.call_id == call.call_id, calls.c.state == "pending")


def _due_call(row: Row[Any]) -> DueCall:
    call = DueCall(*tuple(row))
    if not is_number(call.exp):
        # It is made until IVS has taken it: better once too often than never.
        call = replace(call, exp=repaired(call.call_id, "exp", math.inf))
    if not is_number(call.attempts):
        call = replace(call, attempts=repaired(call.call_id, "attempts", 0))
    return call
