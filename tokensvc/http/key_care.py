"""Sees to it that every Region has a key that IVS verifies: at start, and again every quarter of an hour.

Each Region is looked after by itself. One where IVS does not answer is tried again, ever more rarely
up to once a minute, and meanwhile signs with the key it has; liveness never depends on any of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from tokensvc.http.background import Sleep, log_fault

__all__ = ["RECHECK_SECONDS", "keep_keys"]

RECHECK_SECONDS: Final = 900.0
_FIRST_RETRY_SECONDS: Final = 1.0
_LAST_RETRY_SECONDS: Final = 60.0


class _Manager(Protocol):
    async def prepare(self, region: str) -> Any: ...


async def keep_keys(
    regions: tuple[str, ...],
    manager: _Manager,
    refresh: Callable[[], Awaitable[None]],
    sleep: Sleep,
) -> None:
    """Prepare the key of every Region, and call `refresh` after each attempt, whatever came of it.

    A check that fails may also be why a key must not sign any longer. Ends only by being cancelled.
    """
    async with asyncio.TaskGroup() as group:
        for region in regions:
            group.create_task(_keep(region, manager, refresh, sleep))


async def _keep(
    region: str, manager: _Manager, refresh: Callable[[], Awaitable[None]], sleep: Sleep
) -> None:
    retry = _FIRST_RETRY_SECONDS
    while True:
        prepared = await _try(region, lambda: manager.prepare(region))
        refreshed = await _try(region, refresh)
        if prepared and refreshed:
            retry = _FIRST_RETRY_SECONDS
            await sleep(RECHECK_SECONDS)
        else:
            await sleep(retry)
            retry = min(retry * 2, _LAST_RETRY_SECONDS)


async def _try(region: str, work: Callable[[], Awaitable[object]]) -> bool:
    try:
        await work()
    except Exception as fault:  # noqa: BLE001 - logged, and tried again
        log_fault(f"keys of {region}", fault)
        return False
    return True
