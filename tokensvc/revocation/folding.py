"""How a call enters the queue: once for each participant, whoever else has asked for it.

Two requests that mean the same participant share one call while that is pending (a partial unique index
keeps it so), with the better rank and the later expiry of the two. What is done stays as it was, for the
request that asked for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, case, delete, select, update

from tokensvc.errors import StoreUnavailableError
from tokensvc.revocation.calls import NewCall
from tokensvc.revocation.disconnects import Disconnect
from tokensvc.store.inserts import insert_absent
from tokensvc.store.tables import disconnect_calls as calls
from tokensvc.store.tables import disconnect_members as members

__all__ = ["delete_calls_of_none", "fold_in"]

_ATTEMPTS: Final = 5
_A_BIT: Final = 1e-5
"""Seconds, which a time of today as a double can tell."""


def fold_in(
    connection: Connection, request: Disconnect, found: Sequence[NewCall], now: float
) -> None:
    """Add the calls that a request comes to, in a transaction of the caller's; its own are left alone."""
    ended = _ended(connection, request, [call.target_id for call in found])
    wanted = [call for call in found if not _is_handled(call, ended.get(call.identity))]
    if not wanted:
        return
    stored = _pending_rows(connection, request, wanted, now)
    # An answer of IVS to a call that is under way is from before this request.
    connection.execute(
        update(calls)
        .where(calls.c.call_id.in_([row.call_id for row in stored.values()]))
        .values(updated_at=case((calls.c.updated_at < now, now), else_=calls.c.updated_at + _A_BIT))
    )
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
        delete_calls_of_none(connection, again)


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
    for _ in range(_ATTEMPTS):
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
    return not call.connected or ended.state in {"disconnected", "failed"}


def delete_calls_of_none(connection: Connection, call_ids: Sequence[int]) -> None:
    """Delete those of the calls that no request asks for any more."""
    still = select(members.c.call_id).where(members.c.call_id == calls.c.call_id)
    connection.execute(delete(calls).where(calls.c.call_id.in_(call_ids), ~still.exists()))
