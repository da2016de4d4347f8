"""Work that a serving process repeats while it runs.

A round that fails is logged and followed by the next one: nothing here ends the process, and nothing
here ends because something else failed. A fault that goes on is logged when it begins and when it ends,
not once a second. Should a loop end all the same, only another process does its work again: `/healthz`
is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from tokensvc.errors import TokenServiceError

__all__ = ["Sleep", "every", "running"]

Sleep = Callable[[float], Awaitable[None]]

_STOP_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


async def every(
    seconds: float, work: Callable[[], Awaitable[object]], *, name: str, sleep: Sleep
) -> None:
    """Wait `seconds`, do `work`, for ever; ends only by being cancelled."""
    failing = False
    while True:
        await sleep(seconds)
        try:
            await work()
        except Exception as fault:  # noqa: BLE001 - logged, and the next round comes all the same
            if not failing:
                log_fault(name, fault)
            failing = True
        else:
            if failing:
                _log.info("background_work_recovered", work=name)
            failing = False


def log_fault(name: str, fault: Exception) -> None:
    """Log what went wrong in background work; with a traceback where nobody foresaw it."""
    if isinstance(fault, TokenServiceError):
        _log.warning(
            "background_work_failed",
            work=name,
            code=fault.code,
            detail=fault.detail,
            context=fault.context,
        )
    else:
        _log.error("background_work_failed", work=name, exc_info=fault)


@asynccontextmanager
async def running(
    work: Sequence[Coroutine[Any, Any, None]], ended: Callable[[str], object]
) -> AsyncIterator[None]:
    """Run each of `work` as a task inside, and end them at the exit, waiting 5 seconds at most.

    `ended` is told, in words, which of them ends by a fault.
    """
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(lambda task: _tell_end(task, ended))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            for task in pending:
                _log.warning("background_work_does_not_stop", work=repr(task.get_coro()))


def _tell_end(task: asyncio.Task[None], ended: Callable[[str], object]) -> None:
    # Nothing here is meant to end by a fault; if it does, it must not be found out by what is missing.
    if not task.cancelled() and (fault := task.exception()) is not None:
        work = repr(task.get_coro())
        _log.error("background_work_ended", work=work, exc_info=fault)
        ended(work)
