"""The workers of one `serve` know of a ban before it is answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.testing import capture_logs

from tokensvc.errors import StoreUnavailableError
from tokensvc.http.siblings import Siblings, Wires


class Bans:
    """A worker's list; the store is at `stored`."""

    def __init__(self) -> None:
        self.version = 0
        self.stored = 7
        self.reads = 0
        self.fault: Exception | None = None
        self.is_reading = asyncio.Event()
        self.has_read = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def refresh(self) -> None:
        self.reads += 1
        self.is_reading.set()
        await self.may_read.wait()
        if self.fault is not None:
            raise self.fault
        self.version = self.stored
        self.has_read.set()


@pytest.fixture
def wires() -> Iterator[Wires]:
    wires = Wires(3)
    yield wires
    wires.close()


@pytest.fixture
def lists() -> list[Bans]:
    return [Bans() for _ in range(3)]


@pytest.fixture
async def workers(wires: Wires, lists: list[Bans]) -> AsyncIterator[list[Siblings]]:
    made = [Siblings(wires, number) for number in range(3)]
    async with contextlib.AsyncExitStack() as closing:
        for worker, bans in zip(made, lists, strict=True):
            await closing.enter_async_context(worker.answering(bans))
        yield made


async def test_who_tells_waits_until_every_sibling_has_read(workers, lists):
    lists[2].may_read.clear()
    telling = asyncio.create_task(workers[0].tell(7))
    await asyncio.gather(lists[1].has_read.wait(), lists[2].is_reading.wait())
    assert not telling.done()
    lists[2].may_read.set()
    await telling
    assert [bans.version for bans in lists] == [0, 7, 7], "its own list is its own business"


async def test_who_has_read_that_far_answers_at_once(workers, lists):
    lists[1].version, lists[2].version = 7, 8
    await workers[0].tell(7)
    assert [bans.reads for bans in lists] == [0, 0, 0]


async def test_all_may_tell_at_once(workers, lists):
    await asyncio.gather(*(workers[n % 3].tell(7) for n in range(30)))
    assert [bans.version for bans in lists] == [7, 7, 7]
    assert max(bans.reads for bans in lists) < 10


async def test_an_answer_about_less_is_not_enough(workers, lists, monkeypatch):
    monkeypatch.setattr("tokensvc.http.siblings.WAIT_SECONDS", 0.01)
    lists[1].stored = 6
    with capture_logs() as logs:
        await workers[0].tell(7)
    assert [entry["workers"] for entry in logs] == [[1]]


async def test_a_worker_that_does_not_run_holds_up_for_a_while_and_not_for_ever(
    wires, lists, monkeypatch
):
    monkeypatch.setattr("tokensvc.http.siblings.WAIT_SECONDS", 0.001)
    alone = Siblings(wires, 0)
    async with alone.answering(lists[0]):
        with capture_logs() as logs:
            for _ in range(300):  # more than a socket holds
                await alone.tell(7)
    assert logs[-1]["event"] == "workers_not_told"
    assert logs[-1]["workers"] == [1, 2]


@pytest.mark.parametrize("fault", [StoreUnavailableError("down"), RuntimeError("unforeseen")])
async def test_who_cannot_read_does_not_say_so_and_is_asked_again(
    workers, lists, monkeypatch, fault
):
    lists[1].fault = fault
    with monkeypatch.context() as short, capture_logs() as logs:
        short.setattr("tokensvc.http.siblings.WAIT_SECONDS", 0.01)
        await workers[0].tell(7)
    assert {entry["event"] for entry in logs} == {"bans_not_refreshed", "workers_not_told"}
    lists[1].fault = None
    await workers[0].tell(7)
    assert lists[1].version == 7


async def test_a_worker_that_takes_a_dead_ones_place_answers(wires, lists):
    first = Siblings(wires, 0)
    async with first.answering(lists[0]):
        async with Siblings(wires, 1).answering(lists[1]):
            pass
        telling = asyncio.create_task(first.tell(7))
        await asyncio.sleep(0)
        async with Siblings(wires, 1).answering(lists[1]), Siblings(wires, 2).answering(lists[2]):
            await telling
    assert lists[1].version == 7
