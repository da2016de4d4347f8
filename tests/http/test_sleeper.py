"""What tests wait for: background loops that were woken rest again, whoever else lies down meanwhile."""

from __future__ import annotations

import asyncio

from tests.http.support import Service, Sleeper


def lying(sleeper: Sleeper) -> list[float]:
    """Return for how long each of those sleeps that do."""
    return [seconds for seconds, _ in sleeper.waiting]


async def test_who_was_woken_is_waited_for_though_another_lies_down_first():
    sleeper, works, goes_on = Sleeper(), asyncio.Event(), asyncio.Event()

    async def woken() -> None:
        await sleeper.sleep(1.0)
        works.set()
        await goes_on.wait()
        await sleeper.sleep(1.0)

    async def another() -> None:
        await works.wait()
        await sleeper.sleep(2.0)

    loops = [asyncio.create_task(woken()), asyncio.create_task(another())]
    await sleeper.settled(1)
    waking = asyncio.create_task(sleeper.wake(1.0))
    while lying(sleeper) != [2.0]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waking.done()
    goes_on.set()
    await waking
    assert lying(sleeper) == [2.0, 1.0]
    for loop in loops:
        loop.cancel()


async def test_who_sleeps_by_a_task_of_its_own_or_ends_is_waited_for_as_well():
    sleeper, lasts = Sleeper(), asyncio.Event()

    async def by_a_task() -> None:
        while True:
            await asyncio.wait([asyncio.ensure_future(sleeper.sleep(1.0))])
            await asyncio.create_task(for_another())

    async def for_another() -> None:
        await sleeper.sleep(3.0)

    async def ends() -> None:
        await sleeper.sleep(1.0)
        await lasts.wait()

    loops = [asyncio.create_task(by_a_task()), asyncio.create_task(ends())]
    await sleeper.settled(2)
    waking = asyncio.create_task(sleeper.wake(1.0))
    while lying(sleeper) != [3.0]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    # So many sleep as did before.
    extra = asyncio.create_task(sleeper.sleep(5.0))
    while lying(sleeper) != [3.0, 5.0]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waking.done()
    lasts.set()
    await waking
    for loop in (*loops, extra):
        loop.cancel()


async def test_each_loop_of_a_service_is_known_by_itself(service: Service):
    sleeper = service.sleeper
    assert len({sleeper._loops[future] for _, future in sleeper.waiting}) == len(sleeper.waiting)
