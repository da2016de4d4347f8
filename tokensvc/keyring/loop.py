"""The rotator inside a serving process: every Region, again and again, each for itself.

Nothing here ends the process or says that it is not alive; what does not work is in the status of the
Region, in the log, and tried again. Several processes may run this on one store: each step is fenced
by the ring's version. They look by turns: the more there are, the more rarely each of them, and what
is due is not begun by all of them in the same moment, since IVS takes three calls a second of us all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from tokensvc.errors import TokenServiceError
from tokensvc.keyring.imports import Sleep
from tokensvc.keyring.status import RegionStatus

__all__ = ["RotationLoop", "Ticker"]

_FIRST_RETRY_SECONDS: Final = 1.0
_SHORTEST_PAUSE_SECONDS: Final = 0.5
_JITTER: Final = 0.2
_BETWEEN_LOOKS_SECONDS: Final = 1.0
"""Between two looks at a Region, whoever looks: on average, and never less where all are counted."""

_log = structlog.get_logger(__name__)


class Ticker(Protocol):
    """What takes a Region's steps: `RingManager`."""

    async def tick(self, region: str) -> RegionStatus:
        """Take every step that may be taken now."""
        ...


class RotationLoop:
    """Ticks every Region; `run` ends only by being cancelled."""

    def __init__(
        self,
        manager: Ticker,
        regions: tuple[str, ...],
        *,
        interval: float,
        changed: Callable[[], Awaitable[object]],
        clock: Callable[[], float],
        sleep: Sleep,
        tenders: Callable[[], int],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Look every `interval` seconds, give or take a fifth.

        `changed` is called after every look, so that this process takes over at once what it did
        or found (`RingFollower.refresh(reload=True)`). `clock` is the ring's, in Unix seconds.
        `tenders` says how many processes do the same, this one included.
        """
        self._manager = manager
        self._regions = regions
        self._interval = interval
        self._changed = changed
        self._clock = clock
        self._sleep = sleep
        self._tenders = tenders
        self._uniform = uniform

    async def run(self) -> None:
        """Tick for ever; a Region that fails delays no other."""
        async with asyncio.TaskGroup() as group:
            for region in self._regions:
                group.create_task(self._keep(region))

    async def _keep(self, region: str) -> None:
        failures = 0
        while True:
            status = await self._tick(region)
            failures = 0 if status is not None and not status.problems else failures + 1
            await self._sleep(self._pause(status, failures))

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
        tenders = self._tenders()
        pause = max(self._interval, tenders * _BETWEEN_LOOKS_SECONDS)
        if failures:
            pause = min(pause, _FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
        pause *= self._uniform(1.0 - _JITTER, 1.0 + _JITTER)
        if status is None:
            return pause
        asked = [problem.retry_after for problem in status.problems if problem.retry_after]
        if status.next_at is not None and not failures:
            due = status.next_at - self._clock()
            if tenders > 1:
                due += self._uniform(0.0, (tenders - 1) * _BETWEEN_LOOKS_SECONDS)
            pause = min(pause, due)
        return max(pause, _SHORTEST_PAUSE_SECONDS, *asked)
