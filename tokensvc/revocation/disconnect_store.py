"""Disconnects in the database: what was asked, and how far the looking for whom it means is.

A request is stored, with its ban and its idempotency record, in one transaction, before it is
answered. The calls to IVS that it comes to are a second table (`call_queue.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import NotFoundError
from tokensvc.ledger import Claim, claim_all
from tokensvc.revocation.ban_store import add_ban
from tokensvc.revocation.bans import Ban
from tokensvc.revocation.calls import NewCall
from tokensvc.revocation.damage import is_number, repaired
from tokensvc.revocation.disconnects import Disconnect, DisconnectProgress
from tokensvc.revocation.folding import delete_calls_of_none, fold_in
from tokensvc.revocation.progress import page_after, read_progress
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import bans, disconnects
from tokensvc.store.tables import disconnect_calls as calls
from tokensvc.store.tables import disconnect_members as members
from tokensvc.store.transactions import Transactions

__all__ = ["DisconnectStore"]

_PURGED_AT_ONCE: Final = 200
_PURGED_CALLS_AT_ONCE: Final = 500


class DisconnectStore:
    """The requests of all replicas; every method raises StoreUnavailableError."""

    def __init__(self, engine: AsyncEngine, transactions: Transactions) -> None:
        self._engine = engine
        self._transactions = transactions

    async def ban_end(self, request: Disconnect) -> float:
        """Return when the ban of a request was lifted or ends, in Unix seconds; infinity for never.

        Of a request without one, or whose ban ended so long ago that it is forgotten: when it came.
        """
        if request.ban_id is None:
            return request.created_at
        query = select(bans.c.until, bans.c.lifted_at).where(bans.c.ban_id == request.ban_id)
        with store_faults("read ban"):
            async with self._engine.connect() as connection:
                row = (await connection.execute(query)).one_or_none()
        if row is None:
            return request.created_at
        return min((one for one in tuple(row) if is_number(one)), default=math.inf)

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
                fold_in(connection, request, [first], request.created_at)
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

    async def bring_forward(self, region: str, *, after: float, to: float) -> int:
        """Make due at `to` the sweeps put off beyond `after`, Unix seconds; return how many."""
        late = (
            update(disconnects)
            .where(disconnects.c.region == region, disconnects.c.next_sweep_at > after)
            .values(next_sweep_at=to)
        )
        return await self._transactions.run(
            "bring sweeps forward", lambda connection: connection.execute(late).rowcount
        )

    async def progress(
        self, disconnect_id: str, *, now: float, cursor: str | None = None, limit: int = 100
    ) -> DisconnectProgress:
        """Return where a request stands, with a page of its participants (at most 1000).

        Raises NotFoundError, and InvalidRequestError for a cursor that is none.
        """
        after = page_after(cursor)
        request = await self.get(disconnect_id)
        return await read_progress(self._all, request, now=now, after=after, limit=limit)

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


def _delete_slice(connection: Connection, ids: Sequence[str]) -> int:
    of_requests = members.c.disconnect_id.in_(ids)
    some = select(members.c.call_id).where(of_requests).distinct().limit(_PURGED_CALLS_AT_ONCE)
    call_ids = connection.execute(some).scalars().all()
    if not call_ids:
        return connection.execute(
            delete(disconnects).where(disconnects.c.disconnect_id.in_(ids))
        ).rowcount
    gone = connection.execute(delete(members).where(of_requests, members.c.call_id.in_(call_ids)))
    delete_calls_of_none(connection, call_ids)
    return gone.rowcount


def _disconnect(row: Row[Any]) -> Disconnect:
    """Return a stored request; what is damaged of it (SQLite stores any type) must not stop the others."""
    fields = {name: getattr(row, name) for name in Disconnect.__dataclass_fields__}
    due = fields["next_sweep_at"]
    if due is not None and not is_number(due):
        fields["next_sweep_at"] = repaired(row.disconnect_id, "next_sweep_at", 0.0)
    otherwise = {"created_at": fields["next_sweep_at"] or 0.0, "sweeps": 0, "failed_sweeps": 0}
    for name, value in otherwise.items():
        if not is_number(fields[name]):
            fields[name] = repaired(row.disconnect_id, name, value)
    return Disconnect(**fields)
