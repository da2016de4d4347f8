"""What was answered to a request that carried an `Idempotency-Key`.

A record holds the facts its answer is derived from (participant id, iat, exp, a ban's id), never a
token: the answer to a repetition is signed anew over the same facts. It is stored in the transaction
of what the request did, so that either both are there or neither. Of two requests with the same key
at the same time, on one replica or two, the database lets one record in; the other request learns
what that one says and answers that.

The key and the body are stored as hashes. A key belongs to one caller and one route.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import IdempotencyConflictError, StoreUnavailableError, TokenServiceError
from tokensvc.ledger.waiting import Waiter
from tokensvc.store.faults import store_faults
from tokensvc.store.inserts import insert_absent
from tokensvc.store.tables import idempotency_records as records

__all__ = [
    "Claim",
    "IdempotencyRef",
    "IdempotencyStore",
    "StoredAnswer",
    "claim_all",
    "idempotency_ref",
]

_CLAIMS_PER_STATEMENT: Final = 200
_LOOKUPS_PER_STATEMENT: Final = 200
_ATTEMPTS: Final = 3


class IdempotencyRef(msgspec.Struct, frozen=True, gc=False):
    """Names a repeatable request: who sent it, where to, under which key, and what it asked."""

    caller_id: str
    route: str
    key_sha256: bytes
    request_sha256: bytes


class Claim(msgspec.Struct, frozen=True, gc=False):
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
    """Reads what was answered; the writing is done by `claim_all`, in the transaction of the answer.

    While one look-up is under way, whoever asks waits for the next, which answers them all: a look-up for
    each would take longer than all else in a mint. Belongs to one event loop.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asked: list[_Question] = []
        self._answering: asyncio.Task[None] | None = None

    async def find(self, ref: IdempotencyRef, now: float) -> str | None:
        """Return the stored result of this request, or None.

        Raises IdempotencyConflictError where the key was used with another request, and
        StoreUnavailableError.
        """
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.find_for(answer, ref, now)
        return await answer

    def find_for(self, waiter: Waiter, ref: IdempotencyRef, now: float) -> None:
        """Tell `waiter` what `find` returns or raises: without a task that waits."""
        self._asked.append(_Question(ref, now, waiter))
        if self._answering is None:
            loop = asyncio.get_running_loop()
            self._answering = loop.create_task(self._answer(), name="idempotency look-ups")

    async def _answer(self) -> None:
        try:
            while self._asked:
                # Whoever is about to ask in this turn of the event loop is in it as well.
                await asyncio.sleep(0)
                asked = self._asked[:_LOOKUPS_PER_STATEMENT]
                del self._asked[:_LOOKUPS_PER_STATEMENT]
                try:
                    found = await self._look_up([one.ref for one in asked])
                except Exception as error:  # noqa: BLE001 - it is raised where it was asked
                    foreseen = isinstance(error, TokenServiceError)
                    for one in asked:
                        # A shared one would gather everybody's traceback.
                        one.fail(copy.copy(error) if foreseen else error)
                else:
                    for one in asked:
                        one.tell(found.get(_key_of(one.ref)))
        finally:
            self._answering = None

    async def _look_up(self, refs: Sequence[IdempotencyRef]) -> dict[_Key, _Found]:
        found: dict[_Key, _Found] = {}
        with store_faults("read idempotency record"):
            async with self._engine.connect() as connection:
                for owner in _by_owner(refs):
                    for row in await connection.execute(_STANDING, owner):
                        key = (row.caller_id, row.route, row.key_sha256)
                        answer = StoredAnswer(row.request_sha256, row.result)
                        found[key] = _Found(answer, row.expires_at)
        return found


class _Found(NamedTuple):
    answer: StoredAnswer
    expires_at: object
    """Unix seconds; in a damaged row anything, since SQLite stores any type."""

    def at(self, now: float, ref: IdempotencyRef) -> str | None:
        """Return the result for a request, if it is in force; one that is damaged is."""
        if isinstance(self.expires_at, (int, float)) and self.expires_at <= now:
            return None
        return self.answer.to(ref)


_Key: TypeAlias = tuple[str, str, bytes]


class _Question(NamedTuple):
    ref: IdempotencyRef
    now: float
    waiter: Waiter

    def tell(self, found: _Found | None) -> None:
        try:
            result = None if found is None else found.at(self.now, self.ref)
        except IdempotencyConflictError as conflict:
            self.fail(conflict)
            return
        if not self.waiter.done():
            self.waiter.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)


def claim_all(
    connection: Connection, claims: Sequence[Claim], now: float
) -> dict[Claim, StoredAnswer]:
    """Store the claims and return, for each that came too late, the answer that stands.

    To be called in the transaction of what the claims answer, before the rest of it. Of several
    claims in `claims` under one key the first is stored. Raises StoreUnavailableError where one was in the
    way again and again that was gone at the next look.
    """
    late: dict[Claim, StoredAnswer] = {}
    for start in range(0, len(claims), _CLAIMS_PER_STATEMENT):
        some = claims[start : start + _CLAIMS_PER_STATEMENT]
        # In one order on every replica, so that two of them cannot deadlock; the sort is stable.
        ordered = sorted(some, key=lambda claim: claim.ref.key_sha256)
        if insert_absent(connection, records, [_values(claim) for claim in ordered]) == len(some):
            continue
        # Something was in the way of one, most likely an answer to the same request.
        owners = _by_owner([claim.ref for claim in some])
        for owner in owners:
            connection.execute(_FORGET, {**owner, "now": now})
        standing = _insert(connection, ordered, owners)
        for claim in some:
            row = standing[_key_of(claim.ref)]
            if (row.request_sha256, row.result) != (claim.ref.request_sha256, claim.result):
                late[claim] = StoredAnswer(row.request_sha256, row.result)
    return late


def _insert(
    connection: Connection, claims: Sequence[Claim], owners: Sequence[dict[str, object]]
) -> dict[_Key, Row[Any]]:
    """Store the claims whose keys are free, and return what stands under the keys of all."""
    wanted = {_key_of(claim.ref) for claim in claims}
    for _ in range(_ATTEMPTS):
        insert_absent(connection, records, [_values(claim) for claim in claims])
        standing = {
            (row.caller_id, row.route, row.key_sha256): row
            for owner in owners
            for row in connection.execute(_STANDING, owner)
        }
        if wanted <= standing.keys():
            return standing
        # What was in the way has been deleted meanwhile, by a replica whose clock has it expired.
    raise StoreUnavailableError("Answers cannot be stored: old ones come and go.", retry_after=1.0)


def _key_of(ref: IdempotencyRef) -> _Key:
    return ref.caller_id, ref.route, ref.key_sha256


def _values(claim: Claim) -> dict[str, object]:
    ref = claim.ref
    return {
        "caller_id": ref.caller_id,
        "route": ref.route,
        "key_sha256": ref.key_sha256,
        "request_sha256": ref.request_sha256,
        "result": claim.result,
        "expires_at": claim.expires_at,
    }


def _by_owner(refs: Sequence[IdempotencyRef]) -> list[dict[str, object]]:
    """Return the parameters of `_OF_OWNER` for each caller and route, in one order on every replica."""
    keys: dict[tuple[str, str], list[bytes]] = {}
    for ref in refs:
        keys.setdefault((ref.caller_id, ref.route), []).append(ref.key_sha256)
    return [
        {"of_caller": caller_id, "of_route": route, "of_keys": found}
        for (caller_id, route), found in sorted(keys.items())
    ]


# Made once: a statement made anew for each commit took longer than the commit.
_OF_OWNER: Final = and_(
    records.c.caller_id == bindparam("of_caller"),
    records.c.route == bindparam("of_route"),
    records.c.key_sha256.in_(bindparam("of_keys", expanding=True)),
)
_STANDING: Final = select(records).where(_OF_OWNER)
_FORGET: Final = delete(records).where(_OF_OWNER, records.c.expires_at <= bindparam("now"))
