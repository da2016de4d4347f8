"""Kicks and bans as callers ask for them: stored before they are answered.

A disconnect with a ban stores both in one transaction, and puts the ban into this process's list, and
into those of the replica's other processes, before it returns, so that no mint of this replica succeeds
after the answer; the other replicas follow within a second (`bans.py`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from tokensvc.errors import (
    FieldError,
    InvalidRequestError,
    NotFoundError,
    NotRepeatableError,
    StoreUnavailableError,
)
from tokensvc.ledger import Claim, IdempotencyRef, IssuedRecord, Ledger
from tokensvc.revocation.ban_store import BanStore
from tokensvc.revocation.bans import Ban, BanKind, BanList
from tokensvc.revocation.call_queue import CallQueue
from tokensvc.revocation.calls import FIRST, NewCall
from tokensvc.revocation.disconnect_store import DisconnectStore
from tokensvc.revocation.disconnects import Disconnect, DisconnectAsk, DisconnectProgress
from tokensvc.revocation.schedule import SPACING_SECONDS
from tokensvc.tokens.ids import is_token_id, new_participant_id
from tokensvc.tokens.limits import MAX_PARTICIPANT_TTL_SECONDS

__all__ = ["Accepted", "Revocations"]

MAX_SLICES: Final = 100

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A stored request; `expected_completion` in Unix seconds, an estimate from the queue's length."""

    disconnect_id: str
    ban_id: str | None
    expected_completion: float


class Revocations:
    """Takes disconnects, revocations and bans; `wake(region)` tells this process's worker of work.

    `tell(version)`, where this replica has other processes, returns when they have read the bans up to there.

    `idempotency_window` and `retention` (of requests that are done) are in seconds. Every method
    raises StoreUnavailableError.
    """

    def __init__(
        self,
        *,
        store: DisconnectStore,
        calls: CallQueue,
        ban_store: BanStore,
        bans: BanList,
        ledger: Ledger,
        clock: Callable[[], float],
        wake: Callable[[str], None],
        idempotency_window: float,
        retention: float,
        tell: Callable[[int], Awaitable[None]] | None = None,
        new_id: Callable[[], str] = new_participant_id,
    ) -> None:
        self._store = store
        self._calls = calls
        self._ban_store = ban_store
        self._bans = bans
        self._ledger = ledger
        self._clock = clock
        self._wake = wake
        self._tell = tell
        self._window = idempotency_window
        self._retention = retention
        self._new_id = new_id

    async def disconnect(
        self, ask: DisconnectAsk, *, caller_id: str | None, ref: IdempotencyRef | None = None
    ) -> Accepted:
        """Store a request, with its ban, and return once neither can be lost.

        The same `ref` again gives the same request; raises IdempotencyConflictError, and
        NotRepeatableError where that request is long over. Raises InvalidRequestError for a
        participant whose token is for another stage.
        """
        now = self._clock()
        first = await self._first_call(ask, now)
        ban = self._ban_of(ask, caller_id, now)
        request = Disconnect(
            disconnect_id=f"dis-{self._new_id()}",
            kind=ask.kind,
            region=ask.region,
            stage_arn=ask.stage_arn,
            user_id=ask.user_id,
            target_id=ask.target_id,
            reason=ask.reason,
            ban_id=None if ban is None else ban.ban_id,
            caller_id=caller_id,
            created_at=now,
            next_sweep_at=now if first is None else None,
            sweeps=0,
            failed_sweeps=0,
            last_error=None,
        )
        claim = None if ref is None else Claim(ref, _result(request), now + self._window)
        stored_ban, earlier = await self._store.add(request, ban=ban, first=first, claim=claim)
        if earlier is not None:
            return await self._accepted_before(earlier, now)
        self._wake(ask.region)
        if stored_ban is not None:
            await self._enforce(stored_ban)
        return Accepted(request.disconnect_id, request.ban_id, await self._expected(request, now))

    async def connection_token(self, token_id: str) -> IssuedRecord:
        """Return a connection token of the ledger; raises NotFoundError."""
        found = None
        if is_token_id(token_id):
            found = await self._ledger.latest(token_id, repaired_at=self._clock())
        if found is None or found.kind != "connection":
            raise NotFoundError("There is no such connection token.")
        return found

    async def revoke(
        self, token: IssuedRecord, *, caller_id: str | None, ref: IdempotencyRef | None = None
    ) -> Accepted:
        """Store the revocation of a connection token."""
        ask = DisconnectAsk.of_connection_token(token.region, token.token_id)
        return await self.disconnect(ask, caller_id=caller_id, ref=ref)

    async def progress(
        self, disconnect_id: str, *, cursor: str | None = None, limit: int = 100
    ) -> DisconnectProgress:
        """Return where a request stands; raises NotFoundError and InvalidRequestError (`cursor`)."""
        if not is_token_id(disconnect_id):
            raise NotFoundError("There is no such disconnect.")
        return await self._store.progress(
            disconnect_id, now=self._clock(), cursor=cursor, limit=limit
        )

    async def ban(
        self,
        *,
        stage_arn: str | None = None,
        user_id: str | None = None,
        participant_id: str | None = None,
        until: float | None = None,
        reason: str = "",
        caller_id: str | None,
        ref: IdempotencyRef | None = None,
    ) -> Ban:
        """Ban a user on a stage, a user everywhere, a participant or a stage, `until` Unix seconds.

        Holds in this process when it returns. The same `ref` again gives the same ban; raises
        IdempotencyConflictError, and NotRepeatableError where that ban is long over. Raises
        ValueError where the three name no such thing.
        """
        now = self._clock()
        ban = self._new_ban(
            stage_arn=stage_arn,
            user_id=user_id,
            participant_id=participant_id,
            until=until,
            reason=reason,
            caller_id=caller_id,
            now=now,
        )
        claim = None
        if ref is not None:
            claim = Claim(ref, json.dumps({"banId": ban.ban_id}), now + self._window)
        stored = await self._ban_store.add(ban, claim)
        if isinstance(stored, str):
            known = await self._ban_store.get(json.loads(stored)["banId"])
            if known is None:
                raise NotRepeatableError("The ban that was made is over and has been forgotten.")
            # Another replica may have made it, and it holds here before this is answered, too.
            stored = known
        await self._enforce(stored)
        return stored

    async def find_ban(self, ban_id: str) -> Ban:
        """Return a ban, lifted and ended ones too for a day; raises NotFoundError."""
        found = await self._ban_store.get(ban_id) if is_token_id(ban_id) else None
        if found is None:
            raise NotFoundError("There is no such ban.")
        return found

    async def standing_bans(
        self,
        *,
        stage_arn: str | None = None,
        user_id: str | None = None,
        participant_id: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> tuple[Ban, ...]:
        """Return bans that stand and match every filter given, by id, after the id `after`."""
        return await self._ban_store.standing(
            stage_arn=stage_arn,
            user_id=user_id,
            participant_id=participant_id,
            after=after,
            limit=limit,
        )

    async def lift(self, ban_id: str) -> Ban:
        """Lift a ban; raises NotFoundError."""
        if not is_token_id(ban_id):
            raise NotFoundError("There is no such ban.")
        lifted = await self._ban_store.lift(ban_id)
        self._bans.apply([lifted])
        return lifted

    async def lift_of(
        self, *, stage_arn: str | None, user_id: str | None, participant_id: str | None
    ) -> tuple[Ban, ...]:
        """Lift up to MAX_LIFTED of the bans of exactly this, and return them; others stay as they are."""
        lifted = await self._ban_store.lift_of(stage_arn, user_id, participant_id)
        self._bans.apply(lifted)
        return lifted

    async def tidy(self) -> None:
        """Delete what is long over, in slices; to be repeated every minute or so."""
        for _ in range(MAX_SLICES):
            deleted = await self._store.purge(self._clock() - self._retention)
            deleted += await self._ban_store.purge()
            if deleted == 0:
                return

    async def _enforce(self, ban: Ban) -> None:
        """Let a stored ban hold in this replica: in this process at once, and in its others."""
        self._bans.apply([ban])
        if self._tell is not None:
            await self._tell(ban.version)

    def _ban_of(self, ask: DisconnectAsk, caller_id: str | None, now: float) -> Ban | None:
        if ask.ban is None:
            return None
        of_participant = ask.ban_kind == "participant"
        return self._new_ban(
            stage_arn=None if of_participant else ask.stage_arn,
            user_id=ask.user_id,
            participant_id=ask.target_id if of_participant else None,
            until=now + ask.ban if ask.ban else None,
            reason=ask.reason,
            caller_id=caller_id,
            now=now,
        )

    def _new_ban(
        self,
        *,
        stage_arn: str | None,
        user_id: str | None,
        participant_id: str | None,
        until: float | None,
        reason: str,
        caller_id: str | None,
        now: float,
    ) -> Ban:
        given = (stage_arn is not None, user_id is not None, participant_id is not None)
        kinds: dict[tuple[bool, bool, bool], BanKind] = {
            (True, True, False): "user_on_stage",
            (False, True, False): "user",
            (False, False, True): "participant",
            (True, False, False): "stage",
        }
        if given not in kinds:
            raise ValueError(
                "a ban is of a user, with or without a stage, a participant, or a stage"
            )
        return Ban(
            ban_id=f"ban-{self._new_id()}",
            kind=kinds[given],
            stage_arn=stage_arn,
            user_id=user_id,
            participant_id=participant_id,
            until=until,
            reason=reason,
            caller_id=caller_id,
            created_at=now,
        )

    async def _accepted_before(self, stored: str, now: float) -> Accepted:
        facts = json.loads(stored)
        try:
            known = await self._store.progress(facts["disconnectId"], now=now, limit=1)
        except NotFoundError:
            raise NotRepeatableError("What was asked for is done and has been forgotten.") from None
        if facts["banId"] is not None:
            # Another replica may have stored it, and it holds here before this is answered, too.
            ban = await self._ban_store.get(facts["banId"])
            if ban is not None:
                await self._enforce(ban)
        return Accepted(facts["disconnectId"], facts["banId"], known.expected_completion or now)

    async def _first_call(self, ask: DisconnectAsk, now: float) -> NewCall | None:
        if ask.kind not in {"participant", "connection_token"} or ask.target_id is None:
            return None
        issued = await self._ledger.latest(ask.target_id, repaired_at=now)
        if ask.kind == "participant" and issued is not None:
            _require_participant_of(ask.stage_arn, issued)
        expiries = await self._ledger.last_expiries([ask.target_id])
        # Who is asked for by its id is called, however long ago the token expired.
        exp = max(now, expiries.get(ask.target_id, now + MAX_PARTICIPANT_TTL_SECONDS))
        if ask.kind == "connection_token":
            return NewCall("revoke", "", ask.target_id, None, FIRST, exp)
        return NewCall(
            "disconnect",
            ask.stage_arn or "",
            ask.target_id,
            None if issued is None else issued.user_id,
            FIRST,
            exp,
        )

    async def _expected(self, request: Disconnect, now: float) -> float:
        """Return when a request that is stored may be done; never raises for what the store does."""
        try:
            ahead = await self._calls_ahead(request, now)
        except StoreUnavailableError as error:
            # An estimate; the answer must not say that what is stored has failed.
            _log.warning("disconnect_not_estimated", detail=error.detail)
            ahead = 1
        return now + SPACING_SECONDS * max(1, ahead)

    async def _calls_ahead(self, request: Disconnect, now: float) -> int:
        ahead = await self._calls.ahead(request)
        if request.next_sweep_at is not None:
            ahead += await self._ledger.count_living(
                now,
                stage_arn=request.stage_arn,
                user_id=request.user_id,
                key_id=request.target_id if request.kind == "key" else None,
            )
        return ahead


def _require_participant_of(stage_arn: str | None, issued: IssuedRecord) -> None:
    """Raise InvalidRequestError for whom IVS would not know: the kick would end as "not connected"."""
    if issued.kind == "connection":
        field, code = "participantId", "connection_token"
        detail = "is a connection token's id: DELETE /v1/connection-tokens/{tokenId} revokes it"
    elif issued.stage_arn not in (None, stage_arn):
        field, code = "stageArn", "mismatch"
        detail = "is not the stage that this participant's token is for"
    else:
        return
    raise InvalidRequestError(f"{field}: {detail}", errors=(FieldError(field, code, detail),))


def _result(request: Disconnect) -> str:
    return json.dumps({"disconnectId": request.disconnect_id, "banId": request.ban_id})
