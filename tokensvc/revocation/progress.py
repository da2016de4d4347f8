"""Where a disconnect stands: read from its calls, page by page, with an estimate of its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from sqlalchemy import Row, Select, func, select

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.revocation.call_queue import count_ahead
from tokensvc.revocation.calls import WAITING, Operation
from tokensvc.revocation.damage import is_number
from tokensvc.revocation.disconnects import (
    CallState,
    Disconnect,
    DisconnectProgress,
    ParticipantProgress,
)
from tokensvc.revocation.schedule import SPACING_SECONDS
from tokensvc.store.tables import disconnect_calls as calls
from tokensvc.store.tables import disconnect_members as members

__all__ = ["page_after", "read_progress"]

MAX_PAGE: Final = 1000

Read: TypeAlias = Callable[[Select[Any]], Awaitable[list[Row[Any]]]]


async def read_progress(
    read: Read, request: Disconnect, *, now: float, after: int, limit: int
) -> DisconnectProgress:
    """Return where a request stands, with up to `limit` (1 to 1000) participants after a call's id.

    Raises what `read` raises.
    """
    limit = min(max(limit, 1), MAX_PAGE)
    joined = calls.join(members, members.c.call_id == calls.c.call_id)
    of_request = members.c.disconnect_id == request.disconnect_id
    grouped = (
        select(calls.c.state, calls.c.rank, func.count(), func.max(calls.c.exp))
        .select_from(joined)
        .where(of_request)
        .group_by(calls.c.state, calls.c.rank)
    )
    page = (
        select(calls)
        .select_from(joined)
        .where(of_request, calls.c.call_id > after)
        .order_by(calls.c.call_id)
        .limit(limit + 1)
    )
    groups = [tuple(row) for row in await read(grouped)]
    rows = await read(page)
    counts: dict[CallState, int] = {}
    for state, _, count, _ in groups:
        counts[state] = counts.get(state, 0) + count
    done = request.next_sweep_at is None and counts.get("pending", 0) == 0
    return DisconnectProgress(
        disconnect=request,
        done=done,
        counts=counts,
        expected_completion=None if done else await _expected(read, request, groups, now),
        participants=tuple(_progress(row) for row in rows[:limit]),
        next_cursor=str(rows[limit - 1].call_id) if len(rows) > limit else None,
    )


async def _expected(
    read: Read, request: Disconnect, groups: Sequence[tuple[Any, ...]], now: float
) -> float:
    """Return when a request is expected to be done: its Region's queue up to it, at its pace.

    Those that wait for a participant to appear are done when their tokens expire.
    """
    ahead = int((await read(count_ahead(request)))[0][0])
    moments = [now + SPACING_SECONDS * ahead]
    if request.next_sweep_at is not None:
        moments.append(request.next_sweep_at)
    moments += [
        exp
        for state, rank, _, exp in groups
        if state == "pending" and rank == WAITING and is_number(exp)
    ]
    return max(moments)


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


def page_after(cursor: str | None) -> int:
    """Return the id that a cursor stands for; raises InvalidRequestError for one that is none."""
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        reason = "is not a cursor of this service"
        raise InvalidRequestError(
            f"cursor: {reason}", errors=(FieldError("cursor", "invalid", reason),)
        )
    return int(cursor)
