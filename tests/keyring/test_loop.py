"""The loop ticks every Region for ever, and nothing that one of them does ends it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from structlog.testing import capture_logs

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


class Always:
    """It is always our turn."""

    def __init__(self) -> None:
        self.let_go_of: list[str] = []

    async def take(self, region: str) -> bool:
        return True

    async def let_go(self, region: str) -> None:
        self.let_go_of.append(region)


async def pauses(*answers: RegionStatus | Exception, turns: Always | None = None) -> list[float]:
    scripted = Scripted(*answers)
    loop = RotationLoop(
        scripted,
        (REGION,),
        interval=INTERVAL,
        changed=scripted.changed,
        clock=FakeClock(),
        sleep=scripted.sleep,
        turns=turns or Always(),
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
        turns=Always(),
        uniform=uniform,
    )
    with pytest.raises(BaseExceptionGroup):
        await loop.run()
    assert asked == [(0.8, 1.2)]
    assert scripted.pauses == [24.0]
    assert scripted.changes == 1


class Theirs(Always):
    """It is ours when it has been asked about so often, and before another's; then the store fails."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def take(self, region: str) -> bool:
        self.times -= 1
        if self.times < 0:
            raise StoreUnavailableError("down")
        return self.times == 0

    async def let_go(self, region: str) -> None:
        await super().let_go(region)
        raise StoreUnavailableError("down")


async def test_nothing_is_done_while_it_is_another_s_turn() -> None:
    problem = Problem("Import k1", "ivs_unavailable", "no answer")
    never = AssertionError("it is not our turn")
    answers = [never, never, status(None, problem), never, never]
    turns = Theirs(3)
    with capture_logs() as logs:
        assert await pauses(*answers, turns=turns) == [5.0, 5.0, 1.0, 5.0, 5.0]
    assert [line["event"] for line in logs] == ["key_turn_not_let_go", "key_turn_unknown"]


async def test_whoever_has_trouble_lets_another_try() -> None:
    problem = Problem("Import k1", "ivs_unavailable", "no answer")
    turns = Always()
    await pauses(status(), status(None, problem), ZeroDivisionError(), status(), turns=turns)
    assert turns.let_go_of == [REGION, REGION]


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
        turns=Always(),
    )
    running = asyncio.create_task(loop.run())
    await asyncio.wait_for(enough.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ticks[OTHER_REGION] == 1
