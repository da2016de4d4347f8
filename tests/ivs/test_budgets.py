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
from tokensvc.ivs.budgets import (
    CALLS_PER_SECOND,
    UNDIVIDED,
    WINDOW_SECONDS,
    CallBudgets,
    Operation,
)


async def _passes(
    budgets: CallBudgets, calls: int, operation: Operation, *, urgent: bool = False
) -> list[float | None]:
    """When each of `calls` made at once went through, in seconds from now; None where refused."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one() -> float | None:
        try:
            await budgets.take(operation, REGION, urgent=urgent)
        except IvsThrottledError:
            return None
        return loop.time() - start

    return await asyncio.gather(*(one() for _ in range(calls)))


def test_every_operation_exists_and_has_a_budget() -> None:
    model = Session().get_service_model("ivs-realtime")
    assert set(CALLS_PER_SECOND) == set(get_args(Operation))
    assert set(CALLS_PER_SECOND) <= set(model.operation_names)


def test_a_second_s_calls_pass_at_once_and_the_next_a_second_later() -> None:
    times = without_waiting(_passes(CallBudgets(max_wait_seconds=2.2), 12, "GetStage"))
    passed = [t for t in times if t is not None]
    windows = [number * WINDOW_SECONDS for number in range(3)]
    assert passed == pytest.approx([windows[n // 5] for n in range(12)], abs=0.001)


def test_the_line_is_no_longer_than_what_passes_within_the_wait() -> None:
    times = without_waiting(_passes(CallBudgets(max_wait_seconds=2.2), 100, "GetStage"))
    assert sum(t is not None for t in times) == 5 + 10
    assert max(t for t in times if t is not None) <= 2.2


def test_a_refusal_says_when_to_come_back_and_why() -> None:
    async def scene() -> IvsThrottledError:
        budgets = CallBudgets(max_wait_seconds=2.2)
        waiting = [asyncio.create_task(budgets.take("GetStage", REGION)) for _ in range(15)]
        await asyncio.sleep(0)
        with pytest.raises(IvsThrottledError) as caught:
            await budgets.take("GetStage", REGION)
        await asyncio.gather(*waiting, return_exceptions=True)
        return caught.value

    error = without_waiting(scene())
    assert error.retry_after == pytest.approx(11 * WINDOW_SECONDS / 5)
    assert error.context == {
        "operation": "GetStage",
        "region": REGION,
        "calls_per_second": 5 / WINDOW_SECONDS,
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
    apart = WINDOW_SECONDS / 0.3
    assert passed == pytest.approx([0, apart, 2 * apart, 3 * apart], abs=0.001)


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 60])
def test_the_shares_of_all_processes_are_the_quota_at_most(processes: int) -> None:
    """In any second: also in the first one, in which a bucket would let a burst and its rate through."""

    async def scene() -> list[list[float | None]]:
        each = [CallBudgets(share=1 / processes) for _ in range(processes)]
        return await asyncio.gather(
            *(_passes(budgets, 200, "CreateParticipantToken") for budgets in each)
        )

    passed = sorted(t for times in without_waiting(scene()) for t in times if t is not None)
    quota = CALLS_PER_SECOND["CreateParticipantToken"]
    if processes <= quota:
        for number, start in enumerate(passed):
            assert sum(t < start + 1 for t in passed[number:]) <= quota
    # More processes than calls: each makes its first one when it comes up, whatever the others do.
    assert sum(t > 1 for t in passed) > 0


def test_whoever_gives_up_leaves_the_line() -> None:
    async def scene() -> None:
        budgets = CallBudgets(max_wait_seconds=2.2)
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


def test_what_is_urgent_goes_before_what_waits_and_a_full_line_does_not_refuse_it() -> None:
    async def scene() -> tuple[list[float | None], list[float | None]]:
        budgets = CallBudgets(max_wait_seconds=2.2)
        flood = asyncio.create_task(_passes(budgets, 100, "GetStage"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await _passes(budgets, 4, "GetStage", urgent=True), await flood

    urgent, flood = without_waiting(scene())
    assert urgent == pytest.approx([WINDOW_SECONDS] * 4, abs=0.001)
    # Four of those that waited already had their turn with the next window: now it does not come in time.
    passed = [t for t in flood if t is not None]
    assert passed == pytest.approx([0] * 5 + [WINDOW_SECONDS] + [2 * WINDOW_SECONDS] * 5, abs=0.001)


def test_however_much_is_urgent_one_turn_in_five_is_for_the_rest() -> None:
    async def scene() -> list[bool]:
        budgets = CallBudgets(max_wait_seconds=60)
        order: list[bool] = []

        async def ask(urgent: bool) -> None:
            for _ in range(25):
                await budgets.take("GetStage", REGION, urgent=urgent)
                order.append(urgent)

        await asyncio.gather(*(ask(True) for _ in range(8)), *(ask(False) for _ in range(3)))
        return order

    order = without_waiting(scene())
    # As long as there are both: after the first ones, which find the line empty.
    assert [sum(order[start : start + 5]) for start in range(5, 105, 5)] == [4] * 20


@settings(max_examples=40, deadline=None)
@given(
    share=st.floats(0.05, 1.0),
    pauses=st.lists(st.tuples(st.floats(0, 1.5), st.booleans()), min_size=1, max_size=60),
    operation=st.sampled_from(sorted(CALLS_PER_SECOND)),
)
def test_no_second_sees_more_than_the_share(
    share: float, pauses: list[tuple[float, bool]], operation: Operation
) -> None:
    async def scene() -> list[float]:
        loop = asyncio.get_running_loop()
        budgets = CallBudgets(share=share, max_wait_seconds=2.0)
        passed: list[float] = []

        async def call(urgent: bool) -> None:
            try:
                await budgets.take(operation, REGION, urgent=urgent)
            except IvsThrottledError:
                return
            passed.append(loop.time())

        async with asyncio.TaskGroup() as group:
            for pause, urgent in pauses:
                await asyncio.sleep(pause)
                group.create_task(call(urgent))
        return passed

    passed = without_waiting(scene())
    rate = CALLS_PER_SECOND[operation] * (1.0 if operation in UNDIVIDED else share)
    span = max(1.0, 1 / rate)
    for first, start in enumerate(passed):
        assert sum(t <= start + span for t in passed[first:]) <= max(1.0, rate)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_a_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        CallBudgets(share=share)


@pytest.mark.parametrize("wait", [-1, 61, math.inf, math.nan])
def test_a_wait_out_of_bounds_is_refused(wait: float) -> None:
    with pytest.raises(ConfigurationError, match="wait"):
        CallBudgets(max_wait_seconds=wait)


def test_what_is_divided_is_divided_also_among_calls_that_have_passed() -> None:
    async def scene() -> list[list[float | None]]:
        budgets = CallBudgets(max_wait_seconds=0)
        whole = await _passes(budgets, 60, "CreateParticipantToken")
        budgets.divide(5)
        at_once = await _passes(budgets, 60, "CreateParticipantToken")
        await asyncio.sleep(WINDOW_SECONDS)
        part = await _passes(budgets, 60, "CreateParticipantToken")
        undivided = await _passes(budgets, 60, "DisconnectParticipant")
        budgets.divide(1)
        rest = await _passes(budgets, 60, "CreateParticipantToken")
        return [whole, at_once, part, undivided, rest]

    counts = [sum(t is not None for t in times) for times in without_waiting(scene())]
    assert counts == [50, 0, 10, 5, 40]


def test_more_processes_than_calls_take_turns() -> None:
    async def scene() -> tuple[list[float | None], list[float | None]]:
        budgets = CallBudgets(max_wait_seconds=0)
        budgets.divide(100)
        first = await _passes(budgets, 3, "CreateParticipantToken")
        await asyncio.sleep(WINDOW_SECONDS)
        return first, await _passes(budgets, 3, "CreateParticipantToken")

    first, second = without_waiting(scene())
    assert [sum(t is not None for t in times) for times in (first, second)] == [1, 0]


def test_those_who_look_after_keys_divide_what_only_they_ask_for() -> None:
    async def scene() -> list[list[float | None]]:
        times = []
        for tenders in (1, 2, 3, 40):
            budgets = CallBudgets(max_wait_seconds=0)
            budgets.divide(tenders, tenders=tenders)
            times.append(await _passes(budgets, 9, "ListPublicKeys"))
            times.append(await _passes(budgets, 9, "GetStage"))
        small = CallBudgets(share=0.1, max_wait_seconds=0)
        small.divide(2, tenders=2)
        times.append(await _passes(small, 1, "ListPublicKeys"))
        await asyncio.sleep(2 * WINDOW_SECONDS)
        return [*times, await _passes(small, 1, "ListPublicKeys")]

    counts = [sum(t is not None for t in times) for times in without_waiting(scene())]
    # Nobody goes below a call a second, or what is left of IVS's rate where that is less.
    assert counts == [3, 5, 1, 5, 1, 5, 1, 5, 1, 0]
