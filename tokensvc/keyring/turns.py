"""Whose turn it is to look after a Region's keys: one process of an installation, by a lease.

IVS takes three calls a second about public keys from all of us, so replicas must not all ask it the same.
A turn decides nothing else. Whoever acts though it is not their turn (a command, a request to rotate, two
whose clocks disagree) is fenced by the ring's version, as everybody is.

A turn lasts for seconds and is renewed in the background, so that the next one has it soon after the process
that had it has died; but for no longer than until the next look, so that one which hangs loses it as well. A
process that has run into trouble lets it go: another may have none.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog

from tokensvc.errors import StoreUnavailableError
from tokensvc.store.leases import Lease

__all__ = ["KEEP_SECONDS", "LOOK_SECONDS", "TURN_SECONDS", "RotationTurns"]

KEEP_SECONDS: Final = 5.0
"""Between two renewals."""

TURN_SECONDS: Final = 20.0
"""What a turn lasts when nobody renews it: some renewals may fail."""

LOOK_SECONDS: Final = 15.0
"""For how long it is renewed beyond the pause between two looks: longer than a look with all its steps."""

_NEXT_SECONDS: Final = 1.0
"""Before another one begins where the one before has let go, so that a fault of all of us is no storm."""

_LEAVE_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class Leases(Protocol):
    """Part of `tokensvc.store.leases.LeaseStore`; every method raises StoreUnavailableError."""

    async def take(self, name: str, holder: str, *, seconds: float, now: float) -> Lease | None:
        """Return the lease, or None while another process holds it."""
        ...

    async def renew(self, lease: Lease, *, seconds: float, now: float) -> Lease | None:
        """Return the lease prolonged, or None where it has another holder by now."""
        ...

    async def give_back(self, lease: Lease, *, free_at: float) -> None:
        """Let others have the lease from `free_at` on."""
        ...


class RotationTurns:
    """The turns of one process; `holder` is a random name of its run.

    `seconds` is the longest pause between two looks, `clock` gives Unix seconds.
    """

    def __init__(
        self,
        leases: Leases,
        ring_id: str,
        holder: str,
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._leases = leases
        # A ring id may be as long as the name of a lease.
        self._ring = hashlib.sha256(ring_id.encode()).hexdigest()[:16]
        self._holder = holder
        self._seconds = seconds + LOOK_SECONDS
        self._clock = clock
        self._held: dict[str, Lease] = {}
        # One call about leases at a time: a renewal that is under way must not undo that one was let go.
        self._asking = asyncio.Lock()
        self._kept_until: dict[str, float] = {}

    @property
    def any(self) -> bool:
        """Whether this process looks after the keys of any Region, as far as it knows."""
        return bool(self._held)

    async def take(self, region: str) -> bool:
        """Keep the turn, or take it; False while it is another's.

        Raises StoreUnavailableError where that is not known; a turn that has not ended goes on.
        """
        async with self._asking:
            return await self._take(region)

    async def _take(self, region: str) -> bool:
        now = self._clock()
        held = self._held.get(region)
        lease = None if held is None else await self._renewed(held, now)
        if lease is None:
            self._held.pop(region, None)
            name = f"keys:{region}:{self._ring}"
            lease = await self._leases.take(name, self._holder, seconds=TURN_SECONDS, now=now)
            if lease is not None:
                _log.info("key_turn_taken", region=region, fence=lease.fence)
            elif held is not None:
                _log.info("key_turn_lost", region=region)
        if lease is None:
            return False
        self._held[region] = lease
        self._kept_until[region] = now + self._seconds
        return True

    async def keep(self) -> None:
        """Renew the turns of this process, until the next look is overdue; raises StoreUnavailableError.

        To be called every KEEP_SECONDS.
        """
        for region in tuple(self._held):
            async with self._asking:
                await self._keep(region)

    async def _keep(self, region: str) -> None:
        now = self._clock()
        lease = self._held.get(region)
        if lease is None or now >= self._kept_until.get(region, now):
            return
        renewed = await self._leases.renew(lease, seconds=TURN_SECONDS, now=now)
        if renewed is None:
            del self._held[region]
            _log.info("key_turn_lost", region=region)
        else:
            self._held[region] = renewed

    async def _renewed(self, lease: Lease, now: float) -> Lease | None:
        try:
            return await self._leases.renew(lease, seconds=TURN_SECONDS, now=now)
        except StoreUnavailableError:
            if lease.may_work(now):
                return lease
            raise

    async def let_go(self, region: str) -> None:
        """Let another process have the turn, in a second; raises StoreUnavailableError.

        Where none takes it, it is still this one's.
        """
        self._kept_until.pop(region, None)
        await self._give_back(region, after=_NEXT_SECONDS)

    async def _give_back(self, region: str, *, after: float) -> None:
        async with self._asking:
            lease = self._held.get(region)
            if lease is not None:
                await self._leases.give_back(lease, free_at=self._clock() + after)

    @asynccontextmanager
    async def taking_part(self) -> AsyncIterator[None]:
        """Let every turn go when the body has ended; a store that does not answer is not waited for."""
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(_LEAVE_SECONDS):
                    for region in self._held:
                        await self._give_back(region, after=0.0)
            except TimeoutError:
                _log.warning("key_turn_not_let_go", seconds=_LEAVE_SECONDS)
            except StoreUnavailableError as error:
                _log.warning("key_turn_not_let_go", detail=error.detail)
