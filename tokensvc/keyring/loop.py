"""The rotator inside a serving process: every Region, again and again, each for itself.

Nothing here ends the process or says that it is not alive; what does not work is in the status of the
Region, in the log, and tried again. Several processes may run this on one store: each step is fenced
by the ring's version, and whose turn it is (`turns.py`) keeps them from asking IVS in chorus.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from tokensvc.errors import StoreUnavailableError, TokenServiceError
from tokensvc.keyring.imports import Sleep
from tokensvc.keyring.status import RegionStatus

__all__ = ["RotationLoop", "Ticker", "Turns", "longest_pause"]

_FIRST_RETRY_SECONDS: Final = 1.0
_SHORTEST_PAUSE_SECONDS: Final = 0.5
_JITTER: Final = 0.2
_ASK_SECONDS: Final = 5.0
"""Between two questions whether the turn of another process has ended."""

_log = structlog.get_logger(__name__)


class Ticker(Protocol):
    """What takes a Region's steps: `RingManager`."""

    async def tick(self, region: str) -> RegionStatus:
        """Take every step that may be taken now."""
        ...


class Turns(Protocol):
    """Says whose turn it is: `RotationTurns`. Every method raises StoreUnavailableError."""

    async def take(self, region: str) -> bool:
        """Keep the turn, or take it; False while it is another process's."""
        ...

    async def let_go(self, region: str) -> None:
        """Let another process have the turn."""
        ...


def longest_pause(interval: float) -> float:
    """Return the longest pause, in seconds, between two ticks that went well."""
    return interval * (1.0 + _JITTER)


class RotationLoop:
    """Ticks every Region when it is this process's turn; `run` ends only by being cancelled."""

    def __init__(
        self,
        manager: Ticker,
        regions: tuple[str, ...],
        *,
        interval: float,
        turns: Turns,
        changed: Callable[[], Awaitable[object]],
        clock: Callable[[], float],
        sleep: Sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Look every `interval` seconds, give or take a fifth.

        `changed` is called after every look, so that this process takes over at once what it did
        or found (`RingFollower.refresh(reload=True)`). `clock` is the ring's, in Unix seconds.
        """
        self._manager = manager
        self._regions = regions
        self._interval = interval
        self._turns = turns
        self._unknown: set[str] = set()
        self._changed = changed
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    async def run(self) -> None:
        """Tick for ever; a Region that fails delays no other."""
        async with asyncio.TaskGroup() as group:
            for region in self._regions:
                group.create_task(self._keep(region))

    async def _keep(self, region: str) -> None:
        failures = 0
        while True:
            if not await self._is_ours(region):
                failures = 0
                await self._sleep(min(self._interval, _ASK_SECONDS) * self._jitter())
                continue
            status = await self._tick(region)
            failures = 0 if status is not None and not status.problems else failures + 1
            if failures:
                await self._let_go(region)
            await self._sleep(self._pause(status, failures))

    async def _is_ours(self, region: str) -> bool:
        try:
            is_ours = await self._turns.take(region)
        except StoreUnavailableError as error:
            # Nor could a step be taken; and if all of us looked, IVS would be asked too often.
            if region not in self._unknown:
                _log.warning("key_turn_unknown", region=region, detail=error.detail)
            self._unknown.add(region)
            return False
        self._unknown.discard(region)
        return is_ours

    async def _let_go(self, region: str) -> None:
        try:
            await self._turns.let_go(region)
        except StoreUnavailableError as error:
            # It ends by itself.
            _log.info("key_turn_not_let_go", region=region, detail=error.detail)

    async def _tick(self, region: str) -> RegionStatus | None:
        try:
            status = await self._manager.tick(region)
            await self._changed()
        except TokenServiceError as error:
            _log.warning("rotation_not_taken_over", region=region, reason=error.detail)
            return None
        except Exception as fault:  # noqa: BLE001 - must not end the rotation of any Region
            _log.error("rotation_failed", region=region, exc_info=fault)
            return None
        return status

    def _pause(self, status: RegionStatus | None, failures: int) -> float:
        pause = self._interval
        if failures:
            pause = min(pause, _FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
        pause *= self._jitter()
        if status is None:
            return pause
        asked = [problem.retry_after for problem in status.problems if problem.retry_after]
        if status.next_at is not None and not failures:
            pause = min(pause, status.next_at - self._clock())
        return max(pause, _SHORTEST_PAUSE_SECONDS, *asked)

    def _jitter(self) -> float:
        return self._uniform(1.0 - _JITTER, 1.0 + _JITTER)
