"""One process of an installation looks after a Region's keys, on every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.callers.support import Clock
from tokensvc.errors import StoreUnavailableError
from tokensvc.keyring.turns import KEEP_SECONDS, LOOK_SECONDS, TURN_SECONDS, RotationTurns
from tokensvc.store.leases import LeaseStore
from tokensvc.store.transactions import Transactions, open_transactions

HERE, THERE = "eu-central-1", "us-east-1"
PAUSE = 30.0
RING = "r" * 64


class Replicas:
    """Turns of several processes, half of them on another engine."""

    def __init__(
        self, stores: list[tuple[AsyncEngine, Transactions]], clock: Clock, ring: str = RING
    ) -> None:
        self.turns = [
            RotationTurns(LeaseStore(*stores[n % 2]), ring, f"p{n}", seconds=PAUSE, clock=clock)
            for n in range(3)
        ]

    async def take(self, region: str = HERE) -> list[bool]:
        return [await turns.take(region) for turns in self.turns]


@pytest.fixture
async def stores(
    engine: AsyncEngine, second_engine: AsyncEngine
) -> AsyncIterator[list[tuple[AsyncEngine, Transactions]]]:
    stores = [(one, open_transactions(one)) for one in (engine, second_engine)]
    yield stores
    for _, transactions in stores:
        await transactions.aclose()


async def test_whoever_has_the_turn_keeps_it_and_nobody_else_gets_it(stores, clock):
    replicas = Replicas(stores, clock)
    for _ in range(4):
        assert await replicas.take() == [True, False, False]
        ends = clock.now + PAUSE
        while clock.now < ends:
            clock.now += KEEP_SECONDS
            for turns in replicas.turns:
                await turns.keep()
            assert not await replicas.turns[2].take(HERE)
    assert [turns.any for turns in replicas.turns] == [True, False, False]


async def test_when_it_is_heard_of_no_more_another_takes_over_and_it_learns_that(stores, clock):
    replicas = Replicas(stores, clock)
    first, second, _ = replicas.turns
    assert await first.take(HERE)
    clock.now += TURN_SECONDS - 1
    assert not await second.take(HERE)
    clock.now += 1
    assert await second.take(HERE)
    assert not await first.take(HERE)
    assert not first.any


async def test_whoever_hangs_in_a_look_loses_it(stores, clock):
    """It is renewed meanwhile, for as long as a pause and a look may take together."""
    first, second, _ = Replicas(stores, clock).turns
    assert await first.take(HERE)
    hung_at = clock.now
    while not await second.take(HERE):
        await first.keep()
        clock.now += KEEP_SECONDS
    hung = clock.now - hung_at - TURN_SECONDS
    assert PAUSE + LOOK_SECONDS - KEEP_SECONDS <= hung <= PAUSE + LOOK_SECONDS
    # Not renewed any more, so it learns that when it looks again.
    await first.keep()
    assert first.any
    assert not await first.take(HERE)
    assert not first.any


async def test_whose_turn_was_taken_learns_it_when_it_would_renew_it(stores, clock):
    first, second, _ = Replicas(stores, clock).turns
    assert await first.take(HERE)
    # A process that was stopped for a while.
    clock.now += TURN_SECONDS
    assert await second.take(HERE)
    await first.keep()
    assert not first.any
    await second.keep()
    assert second.any


async def test_the_turn_is_let_go_in_trouble_and_at_the_end(stores, clock):
    first, second, third = Replicas(stores, clock).turns
    assert await first.take(HERE)
    await first.let_go(HERE)
    await first.keep()
    # Not in the same moment: what ails one may ail all.
    assert not await second.take(HERE)
    clock.now += 1
    async with second.taking_part():
        assert await second.take(HERE)
        assert not await third.take(HERE)
    # Who has ended keeps nobody waiting.
    assert await third.take(HERE)
    # Whoever has lost it lets nothing go.
    await first.let_go(HERE)
    clock.now += 1
    assert not await second.take(HERE)


async def test_a_turn_that_was_let_go_and_nobody_took_goes_on(stores, clock):
    first, second, _ = Replicas(stores, clock).turns
    assert await first.take(HERE)
    for waited in (0.8, 5.0):
        await first.let_go(HERE)
        clock.now += waited
        assert await first.take(HERE)
    assert not await second.take(HERE)


async def test_a_renewal_that_is_under_way_does_not_undo_that_the_turn_is_let_go(stores, clock):
    steps: list[str] = []
    renewing, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(LeaseStore):
        async def renew(self, *given, **named):
            renewing.set()
            await goes_on.wait()
            renewed = await super().renew(*given, **named)
            steps.append("renewed")
            return renewed

        async def give_back(self, *given, **named):
            steps.append("given back")
            await super().give_back(*given, **named)

    first = RotationTurns(Slow(*stores[0]), RING, "p0", seconds=PAUSE, clock=clock)
    second = Replicas(stores, clock).turns[1]
    assert await first.take(HERE)
    keeping = asyncio.create_task(first.keep())
    await renewing.wait()
    letting_go = asyncio.create_task(first.let_go(HERE))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(keeping, letting_go)
    assert steps == ["renewed", "given back"]
    clock.now += 1
    assert await second.take(HERE)


async def test_regions_and_rings_of_one_database_are_apart(stores, clock):
    replicas = Replicas(stores, clock)
    assert await replicas.take(HERE) == [True, False, False]
    assert await replicas.turns[1].take(THERE)
    assert await replicas.take(THERE) == [False, True, False]
    assert await Replicas(stores, clock, ring="q" * 64).take(HERE) == [True, False, False]


async def test_a_store_that_does_not_answer_is_said_and_holds_up_no_end(stores, clock):
    class Broken(LeaseStore):
        broken = False

        async def renew(self, *given, **named):
            if self.broken:
                raise StoreUnavailableError("down")
            return await super().renew(*given, **named)

        async def give_back(self, *given, **named):
            raise StoreUnavailableError("down")

    leases = Broken(*stores[0])
    turns = RotationTurns(leases, RING, "p", seconds=PAUSE, clock=clock)
    async with turns.taking_part():
        assert await turns.take(HERE)
        leases.broken = True
        clock.now += TURN_SECONDS / 2
        with pytest.raises(StoreUnavailableError):
            await turns.keep()
        assert await turns.take(HERE)
        clock.now += TURN_SECONDS
        with pytest.raises(StoreUnavailableError):
            await turns.take(HERE)
