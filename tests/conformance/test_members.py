"""How many processes there are is known to each of them, on every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.callers.support import Clock
from tests.ivs.support import REGION
from tokensvc.errors import IvsThrottledError
from tokensvc.http.sharing import BudgetSharing
from tokensvc.ivs.budgets import CallBudgets, Operation
from tokensvc.store.members import ALIVE_SECONDS, BEAT_SECONDS, FORGOTTEN_SECONDS, Members
from tokensvc.store.tables import leases
from tokensvc.store.transactions import Transactions, open_transactions


@pytest.fixture
async def transactions(
    engine: AsyncEngine, second_engine: AsyncEngine
) -> AsyncIterator[tuple[Transactions, Transactions]]:
    both = open_transactions(engine), open_transactions(second_engine)
    yield both
    for one in both:
        await one.aclose()


async def test_processes_count_each_other_until_they_leave_or_are_not_heard_of(transactions):
    clock = Clock()
    one = Members(transactions[0], "one", clock)
    two = Members(transactions[1], "two", clock)
    three = Members(transactions[1], "three", clock)
    assert await one.beat() == 1
    assert await two.beat() == 2
    assert await one.beat() == 2
    await asyncio.gather(*(member.beat() for member in (one, two, three)))
    assert {await member.beat() for member in (one, two, three)} == {3}
    await three.leave()
    assert await one.beat() == 2
    # The second is killed: it counts until it has not been heard of for long enough.
    assert await beats(one, clock, ALIVE_SECONDS) == 2
    clock.now += 0.1
    assert await one.beat() == 1
    four = Members(transactions[1], "four", clock)
    assert await four.beat() == 3, "who comes new cannot tell yet, and counts all"
    assert await one.beat() == 2
    await two.beat()
    assert await one.beat() == 3, "it was only slow"


async def beats(member: Members, clock: Clock, seconds: float) -> int:
    """Let a process beat for so long, alone; return how many it counts at the end."""
    end, found = clock.now + seconds, 0
    while clock.now < end:
        clock.now = min(clock.now + BEAT_SECONDS, end)
        found = await member.beat()
    return found


@pytest.mark.parametrize("outage", [ALIVE_SECONDS + 1, FORGOTTEN_SECONDS + 1])
async def test_after_an_outage_of_the_store_nobody_takes_itself_to_be_alone(
    transactions, engine, outage
):
    clock = Clock()
    members = [Members(transactions[n % 2], f"m{n}", clock) for n in range(3)]
    for _ in range(2):
        for member in members:
            await member.beat()
    clock.now += outage
    assert [await member.beat() for member in members] == [3, 3, 3]
    # The others end a moment later.
    assert await beats(members[0], clock, BEAT_SECONDS + ALIVE_SECONDS + 1) == 1


async def test_a_process_that_was_killed_leaves_nothing_for_ever(transactions, engine):
    clock = Clock()
    one, two = (Members(transactions[0], name, clock) for name in ("one", "two"))
    await one.beat()
    await two.beat()
    await one.beat()
    await beats(one, clock, FORGOTTEN_SECONDS + 1)
    await one.beat()
    async with engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(leases))).scalar() == 1


async def calls(
    budgets: CallBudgets, wanted: int, operation: Operation = "CreateParticipantToken"
) -> int:
    passed = 0
    for _ in range(wanted):
        try:
            await budgets.take(operation, REGION)
        except IvsThrottledError:
            break
        passed += 1
    return passed


def replicas_of(
    transactions: tuple[Transactions, Transactions], clock: Clock
) -> tuple[list[CallBudgets], list[BudgetSharing]]:
    budgets = [CallBudgets(max_wait_seconds=0) for _ in range(3)]
    return budgets, [
        BudgetSharing(one, transactions[number % 2], clock) for number, one in enumerate(budgets)
    ]


async def test_a_newcomer_takes_next_to_nothing_until_it_is_counted(transactions):
    budgets, replicas = replicas_of(transactions, Clock())
    for replica in replicas:
        await replica.beat()
    assert [await calls(one, 99) for one in budgets] == [50, 1, 1]


async def test_replicas_together_do_not_exceed_the_budget_of_the_fallback(transactions):
    clock = Clock()
    budgets, replicas = replicas_of(transactions, clock)
    for _ in range(3):
        for replica in replicas:
            await replica.beat()
        clock.now += BEAT_SECONDS
    assert [replica.processes for replica in replicas] == [3, 3, 3]
    assert [await calls(one, 99) for one in budgets] == [16, 16, 16]
    assert [await calls(one, 9, "ImportPublicKey") for one in budgets] == [1, 1, 1]
    async with replicas[0].taking_part():
        assert replicas[0].processes == 3
    await replicas[1].beat()
    assert replicas[1].processes == 2


async def test_of_the_workers_of_a_machine_one_looks_after_keys(transactions):
    clock = Clock()
    workers = [
        BudgetSharing(CallBudgets(), transactions[number % 2], clock, workers=2)
        for number in range(5)
    ]
    for _ in range(2):
        for worker in workers:
            await worker.beat()
    # The third machine has one worker that has not started yet, or has just died.
    assert [worker.tenders for worker in workers] == [3] * 5
