"""The worker of one Region: turns stored disconnects into calls to IVS, at IVS's pace.

Of all processes only the holder of the Region's lease works, and it begins a call every 205 ms at
most, so the quota of 5 a second is kept however many replicas there are. It asks before each call
whether the lease is still its own, and a new holder waits a second before its first call. Whatever a
process was doing when it died is done again by the next holder: looking for whom a request means and
disconnecting somebody may both be repeated.

Three loops: one keeps the lease, one sweeps (`sweeper.py` finds out whom a request means), one calls.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn, Protocol

import structlog

from tokensvc.errors import (
    IvsNotFoundError,
    IvsRejectedError,
    IvsThrottledError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.ledger import Ledger
from tokensvc.revocation.bans import BanList
from tokensvc.revocation.call_queue import CallQueue
from tokensvc.revocation.calls import ISSUED, DueCall
from tokensvc.revocation.disconnect_store import DisconnectStore
from tokensvc.revocation.disconnects import CallState
from tokensvc.revocation.schedule import (
    LONGEST_RETRY_SECONDS,
    SPACING_SECONDS,
    given_up_at,
    retry_delay,
)
from tokensvc.revocation.sweeper import ParticipantLister, Sweeper, code_of
from tokensvc.revocation.times import WorkerTimes
from tokensvc.store.leases import CLOCKS_APART_SECONDS, Lease, LeaseStore

__all__ = ["DisconnectGateway", "DisconnectWorker"]

LEASE_SECONDS: Final = 20.0
RENEW_SECONDS: Final = 4.0
HANDOVER_SECONDS: Final = 1.0
"""Between the last call of one holder and the first of the next: what IVS's quota is counted over."""

IDLE_SECONDS: Final = 0.5
"""How soon a request that another replica stored is seen."""

REPAIR_SECONDS: Final = 60.0
"""Between two looks for times that only a clock that was ahead can have written."""

CALLS_AT_ONCE: Final = 10

_log = structlog.get_logger(__name__)


class DisconnectGateway(ParticipantLister, Protocol):
    """IVS, as far as revocation needs it; see `ivs.gateway.IvsGateway`. Raises IvsError subclasses."""

    async def disconnect_participant(
        self, region: str, *, stage_arn: str, participant_id: str, reason: str = ""
    ) -> None:
        """Disconnect a participant for good."""
        ...

    async def revoke_connection_token(self, region: str, token_id: str) -> None:
        """Revoke a connection token."""
        ...


class DisconnectWorker:
    """The worker of `region` in this process; `holder` is a random name of this process run."""

    def __init__(
        self,
        region: str,
        holder: str,
        *,
        store: DisconnectStore,
        calls: CallQueue,
        leases: LeaseStore,
        ledger: Ledger,
        bans: BanList,
        gateway: DisconnectGateway,
        times: WorkerTimes,
    ) -> None:
        self._region = region
        self._holder = holder
        self._store = store
        self._calls = calls
        self._leases = leases
        self._bans = bans
        self._gateway = gateway
        self._times = times
        self._sweeper = Sweeper(
            region, store=store, calls=calls, ledger=ledger, gateway=gateway, times=times
        )
        self._lease: Lease | None = None
        self._next_call_at = 0.0
        self._repair_at = -math.inf
        self._line = asyncio.Lock()
        self._may_be_swept = asyncio.Event()
        self._may_be_called = asyncio.Event()
        self._counts: Counter[str] = Counter()

    def counts(self) -> Mapping[str, int]:
        """Return how many calls ended how: `taken`, `not_connected`, or with which error code."""
        return dict(self._counts)

    async def run(self) -> NoReturn:
        """Work until cancelled; then let the next holder in."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._for_ever(self.keep_lease, RENEW_SECONDS))
                group.create_task(self._for_ever(self.sweep, IDLE_SECONDS, self._may_be_swept))
                group.create_task(self._for_ever(self.call, IDLE_SECONDS, self._may_be_called))
        finally:
            await self._give_lease_back()
        raise AssertionError("a worker ends only by being cancelled")

    def wake(self) -> None:
        """Look for work now: a request of this Region was stored in this process."""
        self._may_be_swept.set()
        self._may_be_called.set()

    async def keep_lease(self) -> bool:
        """Take the Region's lease or renew it; raises StoreUnavailableError."""
        now = self._times.clock()
        name = f"disconnects:{self._region}"
        if self._lease is not None:
            self._lease = await self._leases.renew(self._lease, seconds=LEASE_SECONDS, now=now)
        if self._lease is None:
            self._lease = await self._leases.take(
                name, self._holder, seconds=LEASE_SECONDS, now=now
            )
            if self._lease is not None:
                self._next_call_at = self._times.monotonic() + HANDOVER_SECONDS
                _log.info("disconnect_lease_taken", region=self._region, fence=self._lease.fence)
        await self._repair_times(now)
        return False

    async def _repair_times(self, now: float) -> None:
        """Bring forward what a clock that was ahead has put off for longer than anybody here does."""
        if not self._may_work() or not self._times.clock_is_right():
            return
        if self._times.monotonic() < self._repair_at:
            return
        self._repair_at = self._times.monotonic() + REPAIR_SECONDS
        latest = now + LONGEST_RETRY_SECONDS + CLOCKS_APART_SECONDS
        brought = await self._calls.bring_forward(self._region, after=latest, to=now)
        brought += await self._store.bring_forward(self._region, after=latest, to=now)
        if brought:
            _log.warning("disconnects_brought_forward", region=self._region, count=brought)

    async def sweep(self) -> bool:
        """Find out whom the requests that are due mean; tell whether there were any."""
        found = self._may_work() and await self._sweeper.sweep()
        if found:
            self._may_be_called.set()
        return found

    async def call(self) -> bool:
        """Make the calls that are due, as many as one round takes; tell whether there were any."""
        if not self._may_work():
            return False
        due = await self._calls.due_calls(self._region, self._times.clock(), CALLS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for call in due:
                group.create_task(self._call_one(call))
        return bool(due)

    def _may_work(self) -> bool:
        return self._lease is not None and self._lease.may_work(self._times.clock())

    def _is_over(self, call: DueCall) -> bool:
        """Tell whether a call need not be made any more.

        An expired token may have been joined with just before, so one last call is made for it; not so
        where it is one of many, since then the sweeps find whoever is connected.
        """
        if not self._times.clock_is_right():
            return False
        now = self._times.clock()
        return now >= (call.exp if call.rank == ISSUED else given_up_at(call.exp))

    async def _turn(self) -> bool:
        """Wait until the next call may begin, and tell whether it still may; it must begin at once."""
        async with self._line:
            while (wait := self._next_call_at - self._times.monotonic()) > 0:
                await self._times.sleep(wait)
            # Asked now and not by the clock: two holders at once would double the rate.
            lease = self._lease
            if lease is None or not self._may_work() or not await self._leases.still_held(lease):
                return False
            self._next_call_at = self._times.monotonic() + SPACING_SECONDS
            return True

    async def _call_one(self, call: DueCall) -> None:
        try:
            if self._is_over(call):
                await self._expire(call)
            else:
                await self._ask_and_note(call)
        except Exception as error:  # noqa: BLE001 - other calls are under way beside this one
            # Nothing was noted, so the call is still pending and will be made again.
            _log.error(
                "disconnect_call_not_noted",
                region=self._region,
                target=call.target_id,
                code=code_of(error),
                exc_info=None if isinstance(error, TokenServiceError) else error,
            )

    async def _ask_and_note(self, call: DueCall) -> None:
        if not await self._turn():
            return
        attempts = call.attempts + 1
        try:
            await self._ask_ivs(call)
        except IvsNotFoundError as error:
            self._counts["not_connected"] += 1
            await self._not_connected(call, attempts, error)
        except IvsRejectedError as error:
            self._counts[error.code] += 1
            self._log_failure(call, attempts, error)
            await self._calls.settle(
                call, "failed", attempts=attempts, error=error.code, now=self._times.clock()
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, the call is tried again
            self._counts[code_of(error)] += 1
            if isinstance(error, IvsThrottledError):
                # Somebody else spends the quota, too: give it time to fill.
                pause = min(max(error.retry_after or 0.0, HANDOVER_SECONDS), 10.0)
                self._next_call_at = max(self._next_call_at, self._times.monotonic() + pause)
            self._log_failure(call, attempts, error)
            await self._put_off(call, attempts, code_of(error))
        else:
            self._counts["taken"] += 1
            await self._calls.settle(
                call, "disconnected", attempts=attempts, error=None, now=self._times.clock()
            )

    async def _ask_ivs(self, call: DueCall) -> None:
        if call.operation == "revoke":
            await self._gateway.revoke_connection_token(self._region, call.target_id)
            return
        await self._gateway.disconnect_participant(
            self._region,
            stage_arn=call.stage_arn,
            participant_id=call.target_id,
            reason=call.reason,
        )

    async def _not_connected(self, call: DueCall, attempts: int, error: IvsNotFoundError) -> None:
        """IVS knows no such participant, which does not mean that its token is revoked."""
        if not self._times.clock_is_right():
            # Neither the ban nor the token has ended by a clock that is not believed.
            await self._put_off(call, attempts, "not_connected", waiting=True)
            return
        # The ban may have been made a moment ago on another replica, together with this request.
        await self._bans.refresh()
        now = self._times.clock()
        ban = self._bans.check(call.stage_arn or None, call.user_id, call.target_id, now)
        if ban is None or now >= call.exp:
            state: CallState = "not_connected" if now < call.exp else "expired"
            await self._calls.settle(call, state, attempts=attempts, error=error.code, now=now)
            return
        await self._put_off(call, attempts, "not_connected", waiting=True)

    async def _put_off(
        self, call: DueCall, attempts: int, error: str, *, waiting: bool = False
    ) -> None:
        now = self._times.clock()
        until = now + retry_delay(attempts, self._times.luck(), not_connected=waiting)
        await self._calls.put_off(
            call,
            until=until if now >= call.exp else min(until, call.exp),
            attempts=attempts,
            error=error,
            now=now,
            waiting=waiting,
        )

    async def _expire(self, call: DueCall) -> None:
        await self._calls.settle(
            call, "expired", attempts=call.attempts, error=None, now=self._times.clock()
        )

    def _log_failure(self, call: DueCall, attempts: int, error: Exception) -> None:
        _log.warning(
            "disconnect_call_failed",
            region=self._region,
            target=call.target_id,
            call=call.operation,
            attempts=attempts,
            code=code_of(error),
            exc_info=None if isinstance(error, TokenServiceError) else error,
        )

    async def _for_ever(
        self, work: Callable[[], Awaitable[bool]], idle: float, woken: asyncio.Event | None = None
    ) -> None:
        failing = False
        while True:
            try:
                busy = await work()
            except Exception as error:  # noqa: BLE001 - what is stored must be done, whatever one round met
                busy = False
                if not failing:
                    _log.error(
                        "disconnect_worker_failed",
                        region=self._region,
                        code=code_of(error),
                        exc_info=None if isinstance(error, TokenServiceError) else error,
                    )
                failing = True
            else:
                failing = False
            if not busy:
                await self._rest(idle, woken)

    async def _rest(self, seconds: float, woken: asyncio.Event | None) -> None:
        if woken is None:
            await self._times.sleep(seconds)
            return
        resting = asyncio.ensure_future(self._times.sleep(seconds))
        waking = asyncio.create_task(woken.wait())
        try:
            await asyncio.wait({resting, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            resting.cancel()
            waking.cancel()
            woken.clear()

    async def _give_lease_back(self) -> None:
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        try:
            free_at = self._times.clock() + HANDOVER_SECONDS
            await self._leases.give_back(lease, free_at=free_at)
        except StoreUnavailableError as error:
            _log.warning("disconnect_lease_not_given_back", detail=error.detail)
