"""What was answered to a request that carried an `Idempotency-Key`.

A record holds the facts its answer is derived from (participant id, iat, exp, a ban's id), never a
token: the answer to a repetition is signed anew over the same facts. It is stored in the transaction
of what the request did, so that either both are there or neither. Of two requests with the same key
at the same time, on one replica or two, the database lets one record in; the other request learns
what that one says and answers that.

The key and the body are stored as hashes. A key belongs to one caller and one route.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import IdempotencyConflictError
from tokensvc.store.faults import store_faults
from tokensvc.store.tables import idempotency_records as records
from tokensvc.store.transactions import insert_absent

__all__ = [
    "Claim",
    "IdempotencyRef",
    "IdempotencyStore",
    "StoredAnswer",
    "claim_all",
    "idempotency_ref",
]

_CLAIMS_PER_STATEMENT = 200


@dataclass(frozen=True, slots=True)
class IdempotencyRef:
    """Names a repeatable request: who sent it, where to, under which key, and what it asked."""

    caller_id: str
    route: str
    key_sha256: bytes
    request_sha256: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer about to be stored for a request; `expires_at` is in Unix seconds, `result` is JSON."""

    ref: IdempotencyRef
    result: str
    expires_at: float


class StoredAnswer(NamedTuple):
    """What stands under a key."""

    request_sha256: bytes
    result: str

    def to(self, ref: IdempotencyRef) -> str:
        """Return the result, if it answers the request; else raise IdempotencyConflictError."""
        if self.request_sha256 != ref.request_sha256:
            raise IdempotencyConflictError(
                "This Idempotency-Key was used before with another request; use a new key.",
                route=ref.route,
            )
        return self.result


def idempotency_ref(caller_id: str, route: str, key: str, request: bytes) -> IdempotencyRef:
    """Name a request; `request` is its body, or any bytes that are equal for equal requests."""
    return IdempotencyRef(
        caller_id, route, hashlib.sha256(key.encode()).digest(), hashlib.sha256(request).digest()
    )


class IdempotencyStore:
    """Reads what was answered; the writing is done by `claim_all`, in the transaction of the answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def find(self, ref: IdempotencyRef, now: float) -> str | None:
        """Return the stored result of this request, or None.

        Raises IdempotencyConflictError where the key was used with another request, and
        StoreUnavailableError.
        """
        query = select(records.c.request_sha256, records.c.result).where(
            _is(ref), records.c.expires_at > now
        )
        with store_faults("read idempotency record"):
            async with self._engine.connect() as connection:
                row = (await connection.execute(query)).one_or_none()
        return None if row is None else StoredAnswer(*row).to(ref)


def claim_all(
    connection: Connection, claims: Sequence[Claim], now: float
) -> dict[Claim, StoredAnswer]:
    """Store the claims and return, for each that came too late, the answer that stands.

    To be called in the transaction of what the claims answer, before the rest of it. Of several
    claims in `claims` under one key the first is stored.
    """
    late: dict[Claim, StoredAnswer] = {}
    for start in range(0, len(claims), _CLAIMS_PER_STATEMENT):
        some = claims[start : start + _CLAIMS_PER_STATEMENT]
        keys = or_(*(_is(claim.ref) for claim in some))
        connection.execute(delete(records).where(keys, records.c.expires_at <= now))
        # In one order on every replica, so that two of them cannot deadlock; the sort is stable.
        ordered = sorted(some, key=lambda claim: claim.ref.key_sha256)
        insert_absent(connection, records, [_values(claim) for claim in ordered])
        stored = {
            (row.caller_id, row.route, row.key_sha256): row
            for row in connection.execute(select(records).where(keys))
        }
        for claim in some:
            row = stored[claim.ref.caller_id, claim.ref.route, claim.ref.key_sha256]
            if (row.request_sha256, row.result) != (claim.ref.request_sha256, claim.result):
                late[claim] = StoredAnswer(row.request_sha256, row.result)
    return late


def _values(claim: Claim) -> dict[str, object]:
    return {
        "caller_id": claim.ref.caller_id,
        "route": claim.ref.route,
        "key_sha256": claim.ref.key_sha256,
        "request_sha256": claim.ref.request_sha256,
        "result": claim.result,
        "expires_at": claim.expires_at,
    }


def _is(ref: IdempotencyRef) -> ColumnElement[bool]:
    return and_(
        records.c.caller_id == ref.caller_id,
        records.c.route == ref.route,
        records.c.key_sha256 == ref.key_sha256,
    )
