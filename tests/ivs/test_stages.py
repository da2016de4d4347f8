"""Promise: minting does not wait for GetStage, and never uses endpoints that are older than 14 days."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.ivs.support import REGION, without_waiting
from tokensvc.errors import (
    ConfigurationError,
    IvsAccessDeniedError,
    IvsNotFoundError,
    IvsThrottledError,
    IvsUnavailableError,
    StageNotFoundError,
)
from tokensvc.ivs.budgets import CallBudgets
from tokensvc.ivs.gateway import Stage
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS, StageEndpointCache
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints

START = 1_780_000_000.0
TTL = 3600.0
CALLER = "backend"


def arn(name: str) -> StageArn:
    return StageArn(REGION, "123456789012", name)


@dataclass
class Ivs:
    """Stages by ARN; a fault, a hold and a generation that tests change, and a clock."""

    fault: Exception | None = None
    generation: int = 0
    gone: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    held: asyncio.Event | None = None
    now: float = START
    jitter: float = 0.0

    async def get_stage(self, region: str, stage: str) -> Stage:
        self.calls[stage] += 1
        answer = self.endpoints(stage)
        if self.held is not None:
            await self.held.wait()
        if self.fault is not None:
            raise self.fault
        if stage in self.gone:
            raise IvsNotFoundError("Amazon IVS knows no such thing.")
        return Stage(stage, "", answer, {})

    def endpoints(self, stage: str) -> StageEndpoints:
        return StageEndpoints(f"wss://events/{self.generation}", f"https://whip/{stage}")

    def cache(self, **options: float) -> StageEndpointCache:
        return StageEndpointCache(
            self,  # type: ignore[arg-type]
            lambda: self.now,
            ttl_seconds=TTL,
            jitter=lambda: self.jitter,
            **options,  # type: ignore[arg-type]
        )


@dataclass
class PacedIvs(Ivs):
    """IVS behind our own budget of calls to it."""

    budgets: CallBudgets = field(default_factory=CallBudgets)

    async def get_stage(self, region: str, stage: str) -> Stage:
        await self.budgets.take("GetStage", region)
        return await super().get_stage(region, stage)


async def settled(cache: StageEndpointCache) -> None:
    """Let everything that is ready run, the calls in the background included."""
    for _ in range(10):
        await asyncio.sleep(0)


A, B, C = arn("a"), arn("b"), arn("c")
ELSEWHERE = StageArn("us-east-1", "123456789012", "a")


async def test_fresh_endpoints_need_no_second_call() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    first = await cache.get(A, CALLER)
    ivs.now += TTL - 1
    assert await cache.get(A, CALLER) == first == cache.peek(A, ivs.now)
    assert ivs.calls[str(A)] == 1
    assert (cache.misses, cache.hits, cache.stale) == (1, 2, 0)


async def test_stale_endpoints_are_answered_at_once_and_renewed_once_behind() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    old = await cache.get(A, CALLER)
    ivs.now += TTL + 1
    ivs.generation, ivs.held = 1, asyncio.Event()
    assert cache.peek(A, ivs.now) is None
    assert [await cache.get(A, CALLER) for _ in range(3)] == [old] * 3
    await settled(cache)
    assert ivs.calls[str(A)] == 2
    ivs.held.set()
    await settled(cache)
    assert (await cache.get(A, CALLER)).events == "wss://events/1"
    assert (ivs.calls[str(A)], cache.stale, cache.hits) == (2, 3, 1)


async def test_endpoints_of_14_days_are_never_answered() -> None:
    assert HARD_LIMIT_SECONDS == 1_209_600
    ivs = Ivs()
    cache = ivs.cache()
    await cache.get(A, CALLER)
    ivs.now += HARD_LIMIT_SECONDS - 1
    ivs.fault = IvsUnavailableError("down")
    await cache.get(A, CALLER)
    await settled(cache)
    ivs.now += 1
    with pytest.raises(IvsUnavailableError):
        await cache.get(A, CALLER)
    ivs.fault, ivs.generation = None, 1
    assert (await cache.get(A, CALLER)).events == "wss://events/1"


async def test_age_counts_from_the_question() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache()
    asked = asyncio.create_task(cache.get(A, CALLER))
    await settled(cache)
    ivs.now += 100
    assert ivs.held is not None
    ivs.held.set()
    await asked
    assert cache.oldest_age(ivs.now) == 100
    assert cache.oldest_age(START + HARD_LIMIT_SECONDS) == 0


async def test_an_outage_does_not_reach_whoever_has_stale_endpoints() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    old = await cache.get(A, CALLER)
    ivs.fault = IvsUnavailableError("down")
    for hours in range(2, 48):
        ivs.now = START + hours * 3600
        assert await cache.get(A, CALLER) == old
        await settled(cache)
    assert ivs.calls[str(A)] == 47


async def test_a_refresh_that_failed_is_not_repeated_at_once() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    await cache.get(A, CALLER)
    ivs.now += TTL + 1
    ivs.fault = IvsUnavailableError("down")
    for _ in range(5):
        await cache.get(A, CALLER)
        await settled(cache)
    assert ivs.calls[str(A)] == 2
    ivs.now += 10
    await cache.get(A, CALLER)
    await settled(cache)
    assert ivs.calls[str(A)] == 3


async def test_a_stage_that_is_gone_is_refused_from_then_on() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    old = await cache.get(A, CALLER)
    ivs.gone.add(str(A))
    ivs.now += TTL + 1
    assert await cache.get(A, CALLER) == old
    await settled(cache)
    with pytest.raises(StageNotFoundError) as caught:
        await cache.get(A, CALLER)
    assert caught.value.errors[0].field == "stageArn"
    assert len(cache) == 0


async def test_an_unknown_stage_is_asked_for_once_in_a_while() -> None:
    ivs = Ivs(gone={str(A)})
    cache = ivs.cache(negative_ttl_seconds=5.0)
    for _ in range(4):
        with pytest.raises(StageNotFoundError):
            await cache.get(A, CALLER)
    assert (ivs.calls[str(A)], cache.negative_hits) == (1, 3)
    ivs.gone.clear()
    ivs.now += 5
    assert await cache.get(A, CALLER) == ivs.endpoints(str(A))


async def test_made_up_stages_push_no_known_one_out_and_are_bounded() -> None:
    ivs = Ivs()
    cache = ivs.cache(max_entries=2)
    await cache.get(A, CALLER)
    for number in range(50):
        ivs.gone.add(str(arn(f"made-up-{number}")))
        with pytest.raises(StageNotFoundError):
            await cache.get(arn(f"made-up-{number}"), f"caller {number}")
    await cache.get(A, CALLER)
    assert ivs.calls[str(A)] == 1
    with pytest.raises(StageNotFoundError):
        await cache.get(arn("made-up-0"), CALLER)
    assert ivs.calls[str(arn("made-up-0"))] == 2


async def test_the_least_recently_used_stage_leaves() -> None:
    ivs = Ivs()
    cache = ivs.cache(max_entries=2)
    for stage in (A, B, A, C):
        await cache.get(stage, CALLER)
    assert len(cache) == 2
    assert cache.peek(A, ivs.now) is not None
    assert cache.peek(B, ivs.now) is None


async def test_many_askers_one_call_and_one_answer() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache()
    asking = [asyncio.create_task(cache.get(A, CALLER)) for _ in range(50)]
    await settled(cache)
    assert ivs.held is not None
    ivs.held.set()
    answers = await asyncio.gather(*asking)
    assert ivs.calls[str(A)] == 1
    assert set(answers) == {ivs.endpoints(str(A))}


async def test_one_error_for_all_that_wait_and_none_remembered() -> None:
    ivs = Ivs(held=asyncio.Event(), fault=IvsAccessDeniedError("no"))
    cache = ivs.cache()
    asking = [asyncio.create_task(cache.get(A, CALLER)) for _ in range(3)]
    await settled(cache)
    assert ivs.held is not None
    ivs.held.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [IvsAccessDeniedError] * 3
    ivs.fault = None
    assert await cache.get(A, CALLER) == ivs.endpoints(str(A))


async def test_the_call_goes_on_when_whoever_caused_it_leaves() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache()
    first, second = (asyncio.create_task(cache.get(A, CALLER)) for _ in range(2))
    await settled(cache)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert ivs.held is not None
    ivs.held.set()
    assert await second == ivs.endpoints(str(A))
    assert ivs.calls[str(A)] == 1


async def test_lookups_under_way_are_bounded() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache(max_flights=2)
    asking = [asyncio.create_task(cache.get(stage, CALLER)) for stage in (A, B)]
    await settled(cache)
    with pytest.raises(IvsThrottledError) as caught:
        await cache.get(C, CALLER)
    assert caught.value.retry_after == 1.0
    assert ivs.held is not None
    ivs.held.set()
    await asyncio.gather(*asking)
    await cache.get(C, CALLER)


async def test_lookups_under_way_are_bounded_in_each_region_alone() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache(max_flights=1)
    asking = [asyncio.create_task(cache.get(stage, CALLER)) for stage in (A, ELSEWHERE)]
    await settled(cache)
    with pytest.raises(IvsThrottledError):
        await cache.get(B, CALLER)
    ivs.held.set()
    assert await asyncio.gather(*asking) == [ivs.endpoints(str(s)) for s in (A, ELSEWHERE)]


async def test_a_caller_that_looks_up_many_stages_that_do_not_exist_has_to_wait() -> None:
    ivs = Ivs(gone={str(arn(f"{n}")) for n in range(99)})
    cache = ivs.cache()
    await cache.get(A, CALLER)
    for n in range(10):
        with pytest.raises(StageNotFoundError):
            await cache.get(arn(f"{n}"), CALLER)
    for wait in (1.0, 0.5):
        with pytest.raises(IvsThrottledError, match="do not exist") as caught:
            await cache.get(B, CALLER)
        assert caught.value.retry_after == pytest.approx(wait)
        ivs.now += 0.5
    # One more in a second, which may be one that exists: that counts for nothing.
    await cache.get(B, CALLER)
    with pytest.raises(StageNotFoundError):
        await cache.get(arn("10"), CALLER)
    with pytest.raises(IvsThrottledError):
        await cache.tags(C, CALLER)
    # What is known, is answered; and others, and other Regions, have their own.
    assert await cache.get(A, CALLER) == ivs.endpoints(str(A))
    assert await cache.tags(A, CALLER) == {}
    await cache.get(ELSEWHERE, CALLER)
    await cache.get(C, "other")
    # A clock that is set back adds a moment, and no more.
    ivs.now -= 86_400.0
    with pytest.raises(IvsThrottledError) as caught:
        await cache.get(arn("d"), CALLER)
    assert caught.value.retry_after <= 2.0
    ivs.now += 2.0
    await cache.get(arn("d"), CALLER)
    ivs.now += 60.0
    for n in range(20, 30):
        with pytest.raises(StageNotFoundError):
            await cache.get(arn(f"{n}"), CALLER)


def test_a_caller_that_makes_up_stages_keeps_no_other_one_s_new_stage_from_being_found() -> None:
    async def scene() -> None:
        ivs = PacedIvs()
        cache = ivs.cache()
        refused = 0

        async def make_up(number: int) -> None:
            nonlocal refused
            ivs.gone.add(str(arn(f"made-up-{number}")))
            try:
                await cache.get(arn(f"made-up-{number}"), "another")
            except (StageNotFoundError, IvsThrottledError):
                refused += 1

        flood: list[asyncio.Task[None]] = []
        asking: list[asyncio.Task[StageEndpoints]] = []
        for second in range(20):
            flood += [asyncio.create_task(make_up(100 * second + n)) for n in range(100)]
            # It is known as one that makes up stages when the first have not been found.
            if second >= 3:
                asking += [
                    asyncio.create_task(cache.get(arn(f"new-{second}-{n}"), CALLER))
                    for n in range(3)
                ]
            await asyncio.sleep(1.0)
            ivs.now += 1.0
        await asyncio.gather(*flood, *asking)
        assert refused == 2000

    without_waiting(scene())


async def test_a_refresh_waits_while_somebody_waits_for_another_stage_of_the_region() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    for stage in (A, ELSEWHERE):
        await cache.get(stage, CALLER)
    ivs.now += TTL + 1
    ivs.held = asyncio.Event()
    asking = asyncio.create_task(cache.get(B, CALLER))
    await settled(cache)
    for stage in (A, ELSEWHERE):
        await cache.get(stage, CALLER)
    await settled(cache)
    assert (ivs.calls[str(A)], ivs.calls[str(ELSEWHERE)]) == (1, 2)
    ivs.held.set()
    await asking
    await cache.get(A, CALLER)
    await settled(cache)
    assert ivs.calls[str(A)] == 2


async def test_two_refreshes_of_a_region_are_under_way_at_most() -> None:
    ivs = Ivs()
    cache = ivs.cache(max_flights=1)
    for stage in (A, B, C, ELSEWHERE):
        await cache.get(stage, CALLER)
    ivs.now += TTL + 1
    ivs.held = asyncio.Event()
    for stage in (A, B, C, ELSEWHERE):
        await cache.get(stage, CALLER)
    await settled(cache)
    assert [ivs.calls[str(stage)] for stage in (A, B, C, ELSEWHERE)] == [2, 2, 1, 2]
    # They take no place of those that somebody waits for.
    asking = asyncio.create_task(cache.get(arn("new"), CALLER))
    await settled(cache)
    ivs.held.set()
    await asking
    await cache.get(C, CALLER)
    await settled(cache)
    assert ivs.calls[str(C)] == 2


def test_stages_that_an_outage_left_stale_hold_up_no_new_one() -> None:
    async def scene() -> int:
        ivs = PacedIvs()
        cache = ivs.cache()
        known = [arn(f"known-{number}") for number in range(400)]
        for stage in known:
            await cache.get(stage, CALLER)
        ivs.now += 2 * TTL
        asking: list[asyncio.Task[StageEndpoints]] = []
        for number in range(100):
            for stage in known:
                await cache.get(stage, CALLER)
            if number % 3 == 0:
                asking.append(asyncio.create_task(cache.get(arn(f"new-{number}"), CALLER)))
            await asyncio.sleep(0.1)
        await asyncio.gather(*asking)
        return sum(ivs.calls[str(stage)] - 1 for stage in known)

    # Ten seconds of 5 calls: 34 are for new stages, none of which was refused, and the rest is not idle.
    assert without_waiting(scene()) >= 10


async def test_entries_made_together_do_not_end_together() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    for stage, jitter in ((A, 0.0), (B, 0.5), (C, 0.999)):
        ivs.jitter = jitter
        await cache.get(stage, CALLER)

    def fresh_after(seconds: float) -> int:
        return sum(cache.peek(stage, START + seconds) is not None for stage in (A, B, C))

    assert [fresh_after(s) for s in (TTL - 1, TTL + 1, TTL * 1.051, TTL * 1.1)] == [3, 2, 1, 0]


async def test_a_clock_that_was_set_back_keeps_nothing_beyond_its_time() -> None:
    ivs = Ivs()
    cache = ivs.cache()
    await cache.get(A, CALLER)
    ivs.now -= 1_000_000
    ivs.generation = 1
    assert cache.peek(A, ivs.now) is None
    await cache.get(A, CALLER)
    await settled(cache)
    assert (await cache.get(A, CALLER)).events == "wss://events/1"


async def test_new_endpoints_are_told_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    ivs = Ivs()
    cache = ivs.cache()
    await cache.get(A, CALLER)
    ivs.generation = 1
    ivs.now += TTL + 1
    await cache.get(A, CALLER)
    await settled(cache)
    assert "stage_endpoints_changed" in capsys.readouterr().out


async def test_a_bug_in_a_refresh_is_logged_and_hurts_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ivs = Ivs()
    cache = ivs.cache()
    old = await cache.get(A, CALLER)
    ivs.fault = ZeroDivisionError("a bug")
    ivs.now += TTL + 1
    assert await cache.get(A, CALLER) == old
    await settled(cache)
    assert "stage_lookup_crashed" in capsys.readouterr().out
    assert await cache.get(A, CALLER) == old


async def test_closing_ends_the_calls_and_the_waiting() -> None:
    ivs = Ivs(held=asyncio.Event())
    cache = ivs.cache()
    asking = asyncio.create_task(cache.get(A, CALLER))
    await settled(cache)
    await cache.aclose()
    with pytest.raises(IvsUnavailableError):
        await asking
    with pytest.raises(IvsUnavailableError):
        await cache.get(B, CALLER)
    assert ivs.calls[str(B)] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ttl_seconds": 0},
        {"ttl_seconds": HARD_LIMIT_SECONDS + 1},
        {"ttl_seconds": float("nan")},
        {"negative_ttl_seconds": -1},
        {"max_entries": 0},
        {"max_flights": 0},
    ],
)
def test_bounds_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        StageEndpointCache(Ivs(), lambda: 0.0, **options)  # type: ignore[arg-type]
