"""Promise: we stay below IVS's rates, and a burst becomes quick refusals, not a queue."""

from __future__ import annotations

import asyncio
import math
from typing import get_args

import pytest
from botocore.session import Session
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ivs.support import REGION, without_waiting
from tokensvc.errors import ConfigurationError, IvsThrottledError
from tokensvc.ivs.budgets import CALLS_PER_SECOND, UNDIVIDED, CallBudgets, Operation


async def _passes(budgets: CallBudgets, calls: int, operation: Operation) -> list[float | None]:
    """When each of `calls` made at once went through, in seconds from now; None where refused."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one() -> float | None:
        try:
            await budgets.take(operation, REGION)
        except IvsThrottledError:
            return None
        return loop.time() - start

    return await asyncio.gather(*(one() for _ in range(calls)))


def test_every_operation_exists_and_has_a_budget() -> None:
    model = Session().get_service_model("ivs-realtime")
    assert set(CALLS_PER_SECOND) == set(get_args(Operation))
    assert set(CALLS_PER_SECOND) <= set(model.operation_names)


def test_a_burst_of_one_second_passes_and_the_rest_follows_at_the_rate() -> None:
    times = without_waiting(_passes(CallBudgets(max_wait_seconds=2.0), 12, "GetStage"))
    assert [t for t in times if t is None] == []
    passed = sorted(t for t in times if t is not None)
    assert passed[4] < 0.001
    assert passed[5:] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4], abs=0.001)


def test_the_line_is_no_longer_than_what_passes_within_the_wait() -> None:
    times = without_waiting(_passes(CallBudgets(max_wait_seconds=2.1), 100, "GetStage"))
    assert sum(t is not None for t in times) == 5 + 10
    assert max(t for t in times if t is not None) <= 2.1


def test_a_refusal_says_when_to_come_back_and_why() -> None:
    async def scene() -> IvsThrottledError:
        budgets = CallBudgets(max_wait_seconds=2.0)
        waiting = [asyncio.create_task(budgets.take("GetStage", REGION)) for _ in range(15)]
        await asyncio.sleep(0)
        with pytest.raises(IvsThrottledError) as caught:
            await budgets.take("GetStage", REGION)
        await asyncio.gather(*waiting, return_exceptions=True)
        return caught.value

    error = without_waiting(scene())
    assert error.retry_after == pytest.approx(11 / 5)
    assert error.context == {
        "operation": "GetStage",
        "region": REGION,
        "calls_per_second": 5.0,
        "waiting": 10,
    }


def test_a_call_never_waits_where_no_wait_is_allowed() -> None:
    times = without_waiting(_passes(CallBudgets(max_wait_seconds=0), 9, "GetStage"))
    assert sum(t is not None for t in times) == 5


def test_whoever_is_refused_is_told_to_stay_away_for_a_second_at_least() -> None:
    async def scene() -> None:
        budgets = CallBudgets(max_wait_seconds=0)
        for _ in range(50):
            await budgets.take("CreateParticipantToken", REGION)
        with pytest.raises(IvsThrottledError) as caught:
            await budgets.take("CreateParticipantToken", REGION)
        assert caught.value.retry_after == 1.0

    without_waiting(scene())


def test_operations_and_regions_do_not_share() -> None:
    async def scene() -> None:
        budgets = CallBudgets(max_wait_seconds=0)
        for operation in CALLS_PER_SECOND:
            for region in (REGION, "us-east-1"):
                for _ in range(CALLS_PER_SECOND[operation]):
                    await budgets.take(operation, region)
                with pytest.raises(IvsThrottledError):
                    await budgets.take(operation, region)

    without_waiting(scene())


def test_a_share_below_one_call_a_second_still_lets_calls_through() -> None:
    times = without_waiting(_passes(CallBudgets(share=0.1, max_wait_seconds=60), 4, "GetPublicKey"))
    passed = [t for t in times if t is not None]
    assert passed == pytest.approx([0, 1 / 0.3, 2 / 0.3, 3 / 0.3], abs=0.001)


def test_whoever_gives_up_leaves_the_line() -> None:
    async def scene() -> None:
        budgets = CallBudgets(max_wait_seconds=2.0)
        waiting = [asyncio.create_task(budgets.take("GetStage", REGION)) for _ in range(15)]
        await asyncio.sleep(0)
        with pytest.raises(IvsThrottledError):
            await budgets.take("GetStage", REGION)
        for leaving in waiting[-2:]:
            leaving.cancel()
        await asyncio.gather(*waiting[-2:], return_exceptions=True)
        await budgets.take("GetStage", REGION)
        await asyncio.gather(*waiting[:-2])

    without_waiting(scene())


@settings(max_examples=40, deadline=None)
@given(
    share=st.floats(0.05, 1.0),
    pauses=st.lists(st.floats(0, 1.5), min_size=1, max_size=60),
    operation=st.sampled_from(sorted(CALLS_PER_SECOND)),
)
def test_never_more_than_the_rate_and_one_burst(
    share: float, pauses: list[float], operation: Operation
) -> None:
    async def scene() -> list[float]:
        loop = asyncio.get_running_loop()
        budgets = CallBudgets(share=share, max_wait_seconds=2.0)
        passed: list[float] = []

        async def call() -> None:
            try:
                await budgets.take(operation, REGION)
            except IvsThrottledError:
                return
            passed.append(loop.time())

        async with asyncio.TaskGroup() as group:
            for pause in pauses:
                await asyncio.sleep(pause)
                group.create_task(call())
        return passed

    passed = without_waiting(scene())
    rate = CALLS_PER_SECOND[operation] * (1.0 if operation in UNDIVIDED else share)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            allowed = max(1.0, rate) + rate * (passed[last] - start)
            assert last - first + 1 <= allowed + 0.01


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_a_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        CallBudgets(share=share)


@pytest.mark.parametrize("wait", [-1, 61, math.inf, math.nan])
def test_a_wait_out_of_bounds_is_refused(wait: float) -> None:
    with pytest.raises(ConfigurationError, match="wait"):
        CallBudgets(max_wait_seconds=wait)
