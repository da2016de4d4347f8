"""One piece of work after the other, in a thread, for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tokensvc.store.work_thread import WorkThread

PATIENCE_SECONDS = 10.0


@pytest.fixture
def thread() -> Iterator[WorkThread]:
    thread = WorkThread("worker")
    yield thread
    thread.end()


async def test_work_is_done_in_its_order_in_one_other_thread_and_its_result_comes_back(
    thread: WorkThread,
):
    done: list[int] = []

    def work(number: int, by: int) -> tuple[str, int]:
        done.append(number)
        return threading.current_thread().name, number * by

    answers = await asyncio.gather(*(thread.run(PATIENCE_SECONDS, work, n, 3) for n in range(50)))
    assert answers == [("worker", n * 3) for n in range(50)]
    assert done == list(range(50))


async def test_what_work_raises_is_raised_where_it_is_awaited_and_the_thread_goes_on(
    thread: WorkThread,
):
    def fail(error: BaseException) -> None:
        raise error

    for error in (ZeroDivisionError("no"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            await thread.run(PATIENCE_SECONDS, fail, error)
        assert raised.value is error
    assert await thread.run(PATIENCE_SECONDS, lambda: "on") == "on"


async def test_what_fails_while_nobody_waits_is_logged_and_the_thread_goes_on(thread: WorkThread):
    def fail() -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        thread.put(fail)
        assert await thread.run(PATIENCE_SECONDS, lambda: "on") == "on"
    assert [(one["event"], one["log_level"]) for one in logs] == [("work_failed", "error")]


async def test_who_does_not_wait_any_more_has_nothing_begun_for_it(thread: WorkThread):
    goes_on, done = threading.Event(), list[str]()
    hung = asyncio.create_task(thread.run(PATIENCE_SECONDS, goes_on.wait))
    cancelled = asyncio.create_task(thread.run(PATIENCE_SECONDS, done.append, "cancelled"))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(TimeoutError):
        await thread.run(0.001, done.append, "too late")
    last = asyncio.create_task(thread.run(PATIENCE_SECONDS, done.append, "waited for"))
    goes_on.set()
    await asyncio.wait([hung, cancelled, last])
    assert cancelled.cancelled()
    assert done == ["waited for"]


async def test_a_result_that_comes_too_late_goes_nowhere(thread: WorkThread):
    begun, goes_on = threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        goes_on.wait()
        return "late"

    late = asyncio.create_task(thread.run(0.001, hang))
    await asyncio.sleep(0)
    # Here, so that the time is not up before the work has begun.
    assert begun.wait(PATIENCE_SECONDS)
    with pytest.raises(TimeoutError):
        await late
    goes_on.set()
    assert await thread.run(PATIENCE_SECONDS, lambda: "next") == "next"


async def test_an_ended_thread_does_what_it_was_given_before_and_takes_nothing_more():
    thread = WorkThread("worker")
    done: list[str] = []
    before = asyncio.create_task(thread.run(PATIENCE_SECONDS, done.append, "before"))
    await asyncio.sleep(0)
    thread.end()
    await before
    assert done == ["before"]
    with pytest.raises(RuntimeError, match="worker has ended"):
        await thread.run(PATIENCE_SECONDS, done.append, "after")
    with pytest.raises(RuntimeError, match="worker has ended"):
        thread.put(done.append, "after")


def test_an_event_loop_that_ends_first_leaves_a_thread_that_can_end(thread: WorkThread):
    begun, goes_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        goes_on.wait()

    async def leave() -> None:
        waits = asyncio.create_task(thread.run(PATIENCE_SECONDS, hang))
        await asyncio.to_thread(begun.wait)
        assert not waits.done()

    with capture_logs() as logs:
        asyncio.run(leave())
        goes_on.set()
        thread.put(ended.set)
        assert ended.wait(PATIENCE_SECONDS)
    assert [one["event"] for one in logs] == ["event_loop_has_ended"]
