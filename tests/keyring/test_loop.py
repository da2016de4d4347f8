"""The loop ticks every Region for ever, and nothing that one of them does ends it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.keyring.support import NOW, OTHER_REGION, REGION, FakeClock, World
from tokensvc.errors import StoreUnavailableError
from tokensvc.keyring.loop import RotationLoop
from tokensvc.keyring.status import Problem, RegionStatus

INTERVAL = 30.0


class Stop(BaseException):
    pass


class Scripted:
    """Ticks as it is told, and notes how long the loop then waits."""

    def __init__(self, *answers: RegionStatus | Exception) -> None:
        self.answers = list(answers)
        self.pauses: list[float] = []
        self.changes = 0

    async def tick(self, region: str) -> RegionStatus:
        answer = self.answers[len(self.pauses)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def changed(self) -> None:
        self.changes += 1

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == len(self.answers):
            raise Stop


async def pauses(*answers: RegionStatus | Exception, tenders: int = 1) -> list[float]:
    scripted = Scripted(*answers)
    loop = RotationLoop(
        scripted,
        (REGION,),
        interval=INTERVAL,
        changed=scripted.changed,
        clock=FakeClock(),
        sleep=scripted.sleep,
        tenders=lambda: tenders,
        uniform=lambda low, high: (low + high) / 2,
    )
    with pytest.raises(BaseExceptionGroup) as caught:
        await loop.run()
    assert caught.group_contains(Stop)
    return scripted.pauses


def status(next_at: float | None = None, *problems: Problem) -> RegionStatus:
    return RegionStatus(REGION, NOW, "wait", next_at=next_at, problems=problems)


async def test_a_healthy_ring_is_looked_at_every_interval() -> None:
    assert await pauses(status(), status(NOW + 1000)) == [INTERVAL, INTERVAL]


async def test_what_is_due_sooner_is_done_sooner() -> None:
    assert await pauses(status(NOW + 7), status(NOW - 7)) == [7.0, 0.5]


async def test_a_problem_is_tried_again_ever_more_rarely() -> None:
    problem = Problem("Import k1", "ivs_unavailable", "no answer")
    trouble = [status(None, problem)] * 7
    assert await pauses(*trouble, status(), trouble[0]) == [1, 2, 4, 8, 16, 30, 30, 30, 1]


async def test_no_sooner_than_ivs_says() -> None:
    throttled = Problem("Import k1", "ivs_throttled", "too many", retry_after=9.0)
    assert await pauses(status(None, throttled)) == [9.0]


async def test_nothing_that_fails_ends_it() -> None:
    assert await pauses(ZeroDivisionError(), StoreUnavailableError("down"), status()) == [1, 2, 30]


async def test_the_jitter_is_a_fifth_either_way() -> None:
    asked: list[tuple[float, float]] = []
    scripted = Scripted(status())

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    loop = RotationLoop(
        scripted,
        (REGION,),
        interval=INTERVAL,
        changed=scripted.changed,
        clock=FakeClock(),
        sleep=scripted.sleep,
        tenders=lambda: 1,
        uniform=uniform,
    )
    with pytest.raises(BaseExceptionGroup):
        await loop.run()
    assert asked == [(0.8, 1.2)]
    assert scripted.pauses == [24.0]
    assert scripted.changes == 1


async def test_many_that_look_after_keys_look_ever_more_rarely_and_not_at_once() -> None:
    """IVS lists public keys three times a second for all of them."""
    assert await pauses(status(), tenders=3) == [INTERVAL]
    assert await pauses(status(), tenders=120) == [120.0]
    # One of three begins what is due about a second later; the others up to two.
    assert await pauses(status(NOW + 7), tenders=3) == [8.0]
    problem = Problem("Import k1", "ivs_unavailable", "no answer")
    assert await pauses(status(None, problem), tenders=120) == [1.0]


async def test_a_region_that_hangs_does_not_hold_up_another(world: World) -> None:
    manager = world.manager()
    ticks: Counter[str] = Counter()
    enough = asyncio.Event()

    class Hanging:
        async def tick(self, region: str) -> RegionStatus:
            ticks[region] += 1
            if region == OTHER_REGION:
                await asyncio.Event().wait()
            if ticks[region] == 3:
                enough.set()
            return await manager.tick(region)

    async def changed() -> None:
        return

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    loop = RotationLoop(
        Hanging(),
        (OTHER_REGION, REGION),
        interval=INTERVAL,
        changed=changed,
        clock=world.clock,
        sleep=sleep,
        tenders=lambda: 1,
    )
    running = asyncio.create_task(loop.run())
    await asyncio.wait_for(enough.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ticks[OTHER_REGION] == 1
