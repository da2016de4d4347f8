"""Whom a disconnect means: asked of IVS, which knows who is connected, and of the ledger.

A sweep adds calls to the queue. Where a ban stands there is a second one after `SETTLE_SECONDS`, for
tokens that were being issued on some replica when the ban came; and while a full stage is being
cleared there is one every `RESWEEP_SECONDS`, for those who join meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from tokensvc.errors import IvsError, IvsNotFoundError, TokenServiceError
from tokensvc.ivs.gateway import Participant
from tokensvc.ledger import MAX_RECORD_SECONDS, IssuedRecord, Ledger
from tokensvc.revocation.call_queue import CallQueue
from tokensvc.revocation.calls import CONNECTED, FIRST, ISSUED, OF_KEY, OF_USER, NewCall
from tokensvc.revocation.disconnect_store import DisconnectStore
from tokensvc.revocation.disconnects import Disconnect
from tokensvc.revocation.schedule import SESSION_SECONDS, retry_delay
from tokensvc.revocation.times import WorkerTimes
from tokensvc.tokens.limits import MAX_PARTICIPANT_TTL_SECONDS

__all__ = ["RESWEEP_SECONDS", "SETTLE_SECONDS", "ParticipantLister", "Sweeper", "code_of"]

RESWEEP_SECONDS: Final = 30.0

SETTLE_SECONDS: Final = MAX_RECORD_SECONDS + 5.0
"""After a ban: 1 s until all replicas see it, what a mint under way may take, and a margin."""

SWEEPS_AT_ONCE: Final = 4
LEDGER_PAGE: Final = 500

_log = structlog.get_logger(__name__)


class ParticipantLister(Protocol):
    """IVS, as far as a sweep needs it; see `ivs.gateway.IvsGateway`."""

    async def list_participants(
        self, region: str, *, stage_arn: str, user_id: str | None = None
    ) -> Sequence[Participant]:
        """Return who is connected to the stage now; raises IvsError subclasses."""
        ...


class Sweeper:
    """Finds out whom the requests of `region` mean; one at a time works, whoever holds the lease."""

    def __init__(
        self,
        region: str,
        *,
        store: DisconnectStore,
        calls: CallQueue,
        ledger: Ledger,
        gateway: ParticipantLister,
        times: WorkerTimes,
    ) -> None:
        self._region = region
        self._store = store
        self._calls = calls
        self._ledger = ledger
        self._gateway = gateway
        self._times = times

    async def sweep(self) -> bool:
        """Look for whom the requests that are due mean; tell whether there were any.

        Raises StoreUnavailableError.
        """
        due = await self._store.due_sweeps(self._region, self._times.clock(), SWEEPS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for request in due:
                group.create_task(self._sweep_one(request))
        return bool(due)

    async def _sweep_one(self, request: Disconnect) -> None:
        try:
            await self._expand(request)
        except Exception as error:  # noqa: BLE001 - one request's fault must not stop the others'
            await self._sweep_again_later(request, error)

    async def _expand(self, request: Disconnect) -> None:
        error: TokenServiceError | None = None
        connected: set[str] = set()
        # Whoever comes after the ban was lifted, or has ended, is welcome again.
        until = await self._store.ban_end(request)
        if request.stage_arn is not None:
            try:
                connected = await self._enqueue_connected(request, request.stage_arn, until)
            except IvsNotFoundError:
                pass  # no such stage, so nobody is on it
            except IvsError as fault:
                error = fault
        # A second time where a ban stands alone: who is issued a token after a kick may come back with
        # it, and its `iat`, which is set back for slow clocks, may be from before.
        if request.sweeps == 0 or (request.ban_id is not None and request.sweeps == 1):
            await self._enqueue_issued(request, connected, until)
        if error is not None:
            raise error
        if not self._times.clock_is_right():
            # What such a clock takes for expired was not looked at.
            again = self._times.clock() + RESWEEP_SECONDS
            await self._store.sweep_again(request, at=again)
            return
        await self._store.swept(request, next_sweep_at=await self._next_sweep(request))

    async def _next_sweep(self, request: Disconnect) -> float | None:
        if request.ban_id is not None and request.sweeps == 0:
            return request.created_at + SETTLE_SECONDS
        if request.stage_arn is not None and await self._calls.has_unmade_calls(request):
            # Until their turn comes, some may join, and then go first.
            return self._times.clock() + RESWEEP_SECONDS
        return None

    async def _enqueue_connected(
        self, request: Disconnect, stage_arn: str, until: float
    ) -> set[str]:
        participants = await self._gateway.list_participants(
            self._region, stage_arn=stage_arn, user_id=request.user_id
        )
        now = self._times.clock()
        meant = [one for one in participants if not _came_after(one, until)]
        for start in range(0, len(meant), LEDGER_PAGE):
            some = meant[start : start + LEDGER_PAGE]
            expiries = await self._ledger.last_expiries([one.participant_id for one in some])
            found = [
                NewCall(
                    "disconnect",
                    stage_arn,
                    one.participant_id,
                    one.user_id,
                    CONNECTED if request.kind == "stage" else FIRST,
                    # Who is there is called, however long ago the token expired.
                    max(now, expiries.get(one.participant_id, now + MAX_PARTICIPANT_TTL_SECONDS)),
                    connected=True,
                )
                for one in some
            ]
            await self._calls.enqueue(request, found, now)
        return {participant.participant_id for participant in meant}

    async def _enqueue_issued(self, request: Disconnect, connected: set[str], until: float) -> None:
        cursor = None
        of_key = request.kind == "key"
        while True:
            now = self._times.clock()
            page = await self._ledger.living(
                # Who has joined stays beyond the expiry, and nobody lists them for all stages of a key.
                now - SESSION_SECONDS if of_key else now,
                stage_arn=request.stage_arn,
                user_id=request.user_id,
                key_id=request.target_id if of_key else None,
                cursor=cursor,
                limit=LEDGER_PAGE,
            )
            found = {
                token.token_id: _call_for(token, request)
                for token in page.tokens
                if _is_meant(token, request, stands=until > now)
                and token.token_id not in connected
                and (token.kind == "participant" or token.exp > now)
            }
            await self._calls.enqueue(request, list(found.values()), now)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _sweep_again_later(self, request: Disconnect, error: Exception) -> None:
        now = self._times.clock()
        code = code_of(error)
        _log.warning(
            "disconnect_sweep_failed",
            disconnect_id=request.disconnect_id,
            region=self._region,
            code=code,
            exc_info=None if isinstance(error, TokenServiceError) else error,
        )
        delay = retry_delay(request.failed_sweeps + 1, self._times.luck())
        # After a day nobody can still be connected whom this request meant.
        gone = now > request.created_at + SESSION_SECONDS and self._times.clock_is_right()
        await self._store.swept(request, next_sweep_at=None if gone else now + delay, error=code)


def code_of(error: Exception) -> str:
    """Return the code that an error is told by."""
    return error.code if isinstance(error, TokenServiceError) else TokenServiceError.code


def _came_after(participant: Participant, until: float) -> bool:
    joined = participant.first_join_time
    return joined is not None and joined > until


def _is_meant(token: IssuedRecord, request: Disconnect, *, stands: bool) -> bool:
    if token.disconnected_at is not None:
        return False
    if request.kind != "key" and token.kind != "participant":
        return False
    # While the ban stands, those are meant, too, that were being issued when it came.
    return stands or request.kind == "key" or token.iat <= request.created_at


def _call_for(token: IssuedRecord, request: Disconnect) -> NewCall:
    if token.kind == "connection":
        return NewCall("revoke", "", token.token_id, None, OF_KEY, token.exp)
    rank = {"stage": ISSUED, "key": OF_KEY}.get(request.kind, OF_USER)
    return NewCall(
        "disconnect", token.stage_arn or "", token.token_id, token.user_id, rank, token.exp
    )
