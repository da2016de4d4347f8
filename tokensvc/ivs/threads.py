"""The threads in which boto3 may block.

They are few and started when they are first needed, the line before them is short, and waiting for
one of them ends at a deadline. A thread that is past the deadline cannot be stopped; it ends by
botocore's own timeouts and keeps its place until then, so that a silent IVS cannot make the line grow
behind the scenes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tokensvc.errors import IvsThrottledError, IvsUnavailableError

__all__ = ["CallThreads"]

_Result = TypeVar("_Result")


class CallThreads:
    """A thread pool with a bound on what it holds; belongs to one event loop."""

    def __init__(self, *, max_threads: int, max_waiting: int, deadline_seconds: float) -> None:
        self._deadline = deadline_seconds
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="ivs")
        self._places = threading.BoundedSemaphore(max_threads + max_waiting)

    async def run(self, work: Callable[[], _Result], **context: Any) -> _Result:
        """Return what `work` returns, or raise what it raises.

        Raises IvsThrottledError when all places are taken, and IvsUnavailableError when the deadline
        passes first or the pool is closed; `context` goes with both.
        """
        job = self._submit(work, context)
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise IvsUnavailableError(
                "Amazon IVS did not answer in time.",
                retry_after=1.0,
                deadline_seconds=self._deadline,
                **context,
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the job, by `aclose`.
            raise _closed(context) from None

    async def aclose(self) -> None:
        """Refuse further work, drop what waits for a thread, wait for what is in one."""
        # Dropped at once: of many pools, not all may have a thread in which to wait at the same time.
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._pool.shutdown)

    def _submit(self, work: Callable[[], _Result], context: Mapping[str, Any]) -> Future[_Result]:
        if not self._places.acquire(blocking=False):
            raise IvsThrottledError(
                "Too many calls to Amazon IVS are under way.", retry_after=1.0, **context
            )
        try:
            job = self._pool.submit(work)
        except RuntimeError as error:
            self._places.release()
            raise _closed(context) from error
        job.add_done_callback(lambda _: self._places.release())
        return job


def _closed(context: Mapping[str, Any]) -> IvsUnavailableError:
    return IvsUnavailableError(
        "The connection to Amazon IVS is being closed.", retry_after=1.0, **context
    )
