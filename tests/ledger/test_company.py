"""Batches rest while somebody waits for a commit, and go on one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.ledger.support import Age
from tokensvc.ledger.company import LONGEST_REST_SECONDS, MOMENT_SECONDS, Company


@pytest.fixture
def company(age: Age) -> Company:
    return Company(age)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Callable[[], None]]]:
    """Timers that were set, and do not run out by themselves."""
    timers: list[tuple[float, Callable[[], None]]] = []

    class Loop:
        def __getattr__(self, name: str) -> object:
            return getattr(asyncio.get_event_loop(), name)

        def call_later(
            self, seconds: float, end: Callable[..., None], *given: object
        ) -> asyncio.Handle:
            timers.append((seconds, lambda: end(*given)))
            return asyncio.get_event_loop().call_soon(lambda: None)

    monkeypatch.setattr("tokensvc.ledger.company.asyncio.get_running_loop", Loop)
    return timers


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_who_came_is_there_for_a_moment(company: Company, age: Age) -> None:
    assert not company.was_here
    assert not company.is_waiting
    company.came(age.seconds)
    assert company.was_here
    assert company.is_waiting
    company.is_served()
    assert not company.is_waiting
    assert company.was_here
    age.seconds += 2 * MOMENT_SECONDS
    assert not company.was_here


async def test_where_nobody_waits_a_rest_is_one_turn(company: Company) -> None:
    seen = []
    asyncio.get_running_loop().call_soon(seen.append, "somebody else")
    await company.rest()
    assert seen == ["somebody else"]


async def test_a_batch_rests_until_nobody_waits(
    company: Company, age: Age, timers: list[object]
) -> None:
    company.came(age.seconds)
    resting = asyncio.create_task(company.rest())
    await turns()
    assert not resting.done()
    assert len(timers) == 1
    company.is_served()
    await turns()
    assert resting.done()


async def test_those_who_rest_go_on_one_in_each_turn_while_nobody_comes(
    company: Company, age: Age, timers: list[object]
) -> None:
    company.came(age.seconds)
    gone_on: list[int] = []

    async def rest(number: int) -> None:
        await company.rest()
        gone_on.append(number)

    tasks = [asyncio.create_task(rest(number)) for number in range(5)]
    await turns()
    company.is_served()
    most = 0
    while len(gone_on) < 3:
        before = len(gone_on)
        await asyncio.sleep(0)
        most = max(most, len(gone_on) - before)
    assert most == 1
    company.came(age.seconds)
    await turns(10)
    left = 5 - len(gone_on)
    assert left >= 1
    company.is_served()
    await asyncio.gather(*tasks)
    assert gone_on == [0, 1, 2, 3, 4]


async def test_who_comes_to_rest_while_others_do_goes_on_after_them(
    company: Company, age: Age, timers: list[object]
) -> None:
    company.came(age.seconds)
    order: list[str] = []

    async def rest(name: str) -> None:
        await company.rest()
        order.append(name)

    first = [asyncio.create_task(rest("first")), asyncio.create_task(rest("second"))]
    await turns()
    company.is_served()
    last = asyncio.create_task(rest("last"))
    await asyncio.gather(*first, last)
    assert order == ["first", "second", "last"]


async def test_where_somebody_always_waits_a_batch_goes_on_after_a_while(
    company: Company, age: Age, timers: list[tuple[float, Callable[[], None]]]
) -> None:
    company.came(age.seconds)
    resting = asyncio.create_task(company.rest())
    await turns()
    ((seconds, run_out),) = timers
    assert seconds == LONGEST_REST_SECONDS
    run_out()
    await turns()
    assert resting.done()
    assert company.is_waiting
    # It is not among those who rest any more: the next to come finds nobody before it.
    company.is_served()
    await asyncio.wait_for(company.rest(), timeout=60)


async def test_a_batch_that_is_cancelled_while_it_rests_holds_nobody_up(
    company: Company, age: Age, timers: list[object]
) -> None:
    company.came(age.seconds)
    gone = asyncio.create_task(company.rest())
    other = asyncio.create_task(company.rest())
    await turns()
    gone.cancel()
    company.is_served()
    await turns()
    assert gone.cancelled()
    assert other.done()
