"""Promise: a silent IVS holds a bounded number of threads and callers, each for a bounded time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.ivs.support import without_waiting
from tokensvc.errors import IvsThrottledError, IvsUnavailableError
from tokensvc.ivs.threads import CallThreads


class Gate:
    """Work that blocks its thread until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)

    def work(self) -> str:
        self.entered.release()
        assert self.opened.wait(60)
        return "done"

    async def all_entered(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=60)


@asynccontextmanager
async def threads_for(
    gate: Gate, *, max_threads: int = 1, max_waiting: int = 0, deadline_seconds: float = 60.0
) -> AsyncIterator[CallThreads]:
    threads = CallThreads(
        max_threads=max_threads, max_waiting=max_waiting, deadline_seconds=deadline_seconds
    )
    try:
        yield threads
    finally:
        gate.opened.set()
        await threads.aclose()


async def test_what_the_work_returns_or_raises_comes_back() -> None:
    gate = Gate()
    async with threads_for(gate) as threads:
        assert await threads.run(lambda: threading.current_thread().name) == "ivs_0"
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)


async def test_one_more_than_fits_is_refused_at_once() -> None:
    gate = Gate()
    async with threads_for(gate, max_threads=2, max_waiting=1) as threads:
        held = [asyncio.create_task(threads.run(gate.work)) for _ in range(3)]
        await gate.all_entered(2)
        with pytest.raises(IvsThrottledError) as caught:
            await threads.run(gate.work, operation="GetStage")
        assert caught.value.context == {"operation": "GetStage"}
        assert caught.value.retry_after == 1.0
        gate.opened.set()
        assert await asyncio.gather(*held) == ["done"] * 3
        assert await threads.run(gate.work) == "done"


def test_the_caller_leaves_at_the_deadline_and_the_thread_keeps_its_place() -> None:
    async def scene() -> None:
        gate = Gate()
        async with threads_for(gate, deadline_seconds=10.0) as threads:
            loop = asyncio.get_running_loop()
            start = loop.time()
            with pytest.raises(IvsUnavailableError) as caught:
                await threads.run(gate.work, operation="GetStage")
            assert loop.time() - start == pytest.approx(10.0, abs=0.01)
            assert caught.value.context == {"operation": "GetStage", "deadline_seconds": 10.0}
            with pytest.raises(IvsThrottledError):
                await threads.run(gate.work)

    without_waiting(scene())


def test_work_that_still_waited_at_the_deadline_is_never_done() -> None:
    async def scene() -> list[str]:
        gate, done = Gate(), []
        async with threads_for(gate, max_waiting=1, deadline_seconds=10.0) as threads:
            held = asyncio.create_task(threads.run(gate.work))
            await asyncio.sleep(0)
            with pytest.raises(IvsUnavailableError):
                await threads.run(lambda: done.append("late"))
            with pytest.raises(IvsUnavailableError):
                await held
        return done

    assert without_waiting(scene()) == []


async def test_cancelling_the_caller_stays_a_cancellation() -> None:
    gate = Gate()
    async with threads_for(gate) as threads:
        held = asyncio.create_task(threads.run(gate.work))
        await gate.all_entered(1)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held


async def test_closing_drops_what_waits_and_finishes_what_runs() -> None:
    gate = Gate()
    async with threads_for(gate, max_waiting=1) as threads:
        running = asyncio.create_task(threads.run(gate.work))
        await gate.all_entered(1)
        waiting = asyncio.create_task(threads.run(gate.work, operation="GetStage"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(threads.aclose())
        with pytest.raises(IvsUnavailableError) as caught:
            await waiting
        assert caught.value.context == {"operation": "GetStage"}
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        gate.opened.set()
        assert await running == "done"
        await closing
        with pytest.raises(IvsUnavailableError):
            await threads.run(gate.work)
