"""Promise: replicas share what they fetch, so IVS is asked for a stage about once, not once by each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from tests.ivs.test_endpoint_saver import Memory
from tests.ivs.test_stages import CALLER, START, TTL, A, Ivs, settled
from tokensvc.errors import IvsUnavailableError, StoreUnavailableError
from tokensvc.ivs import stages
from tokensvc.ivs.endpoint_store import KnownStage
from tokensvc.ivs.gateway import Stage
from tokensvc.ivs.stages import StageEndpointCache

REPLICAS = 8
OLD = KnownStage(A, Ivs(generation=9).endpoints(str(A)), START, {"tenant": "acme"})


@dataclass
class World:
    """One IVS, one store and replicas."""

    ivs: Ivs = field(default_factory=Ivs)
    memory: Memory = field(default_factory=Memory)

    def replica(self, jitter: Callable[[], float] = lambda: 0.0) -> StageEndpointCache:
        return StageEndpointCache(
            self.ivs,  # type: ignore[arg-type]
            lambda: self.ivs.now,
            ttl_seconds=TTL,
            jitter=jitter,
            store=self.memory,
        )


@pytest.fixture
def world() -> World:
    return World()


async def test_a_stage_is_fetched_once_for_all_replicas_in_a_time_to_live(world: World) -> None:
    replicas = [world.replica(lambda share=n / REPLICAS: share) for n in range(REPLICAS)]  # type: ignore[misc]
    for _ in range(5):
        for replica in replicas:
            await replica.get(A, CALLER)
            await settled(replica)
        world.ivs.now += TTL * 1.2
    assert world.ivs.calls[str(A)] == 5
    for replica in replicas:
        await replica.aclose()


async def test_tags_are_shared_too_and_no_older_than_the_time_to_live(world: World) -> None:
    world.memory.kept[A] = OLD
    world.ivs.now += TTL - 1
    replica = world.replica()
    assert await replica.tags(A, CALLER) == OLD.tags
    assert world.ivs.calls[str(A)] == 0
    world.ivs.now += 1
    assert await replica.tags(A, CALLER) == {}
    assert world.ivs.calls[str(A)] == 1
    await replica.aclose()


@pytest.mark.parametrize(
    "kept",
    [
        replace(OLD, fetched_at=START - TTL),
        replace(OLD, fetched_at=START + 1),
        replace(OLD, tags=None),
    ],
    ids=["too old", "of the future", "without tags"],
)
async def test_what_is_not_fresh_and_whole_is_fetched(world: World, kept: KnownStage) -> None:
    world.memory.kept[A] = kept
    replica = world.replica()
    assert (await replica.get(A, CALLER)).events == "wss://events/0"
    assert world.ivs.calls[str(A)] == 1
    await replica.aclose()


async def test_a_store_that_fails_costs_no_mint(world: World) -> None:
    world.memory.fault = StoreUnavailableError("down")
    replica = world.replica()
    assert (await replica.get(A, CALLER)).events == "wss://events/0"
    await replica.aclose()


async def test_a_store_that_does_not_answer_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_FIND_SECONDS", 0.0)
    world.memory.held = asyncio.Event()
    replica = world.replica()
    assert (await replica.get(A, CALLER)).events == "wss://events/0"
    world.memory.held.set()
    await replica.aclose()


async def test_a_stage_that_another_replica_knows_needs_no_ivs(world: World) -> None:
    world.memory.kept[A] = OLD
    world.ivs.fault = IvsUnavailableError("down")
    replica = world.replica()
    assert await replica.get(A, CALLER) == OLD.endpoints
    assert replica.misses == 1
    await replica.aclose()


async def test_a_fresh_entry_reads_no_store(world: World) -> None:
    replica = world.replica()
    await replica.get(A, CALLER)
    for _ in range(3):
        await replica.get(A, CALLER)
        await replica.tags(A, CALLER)
    assert world.memory.finds == 1
    await replica.aclose()


async def test_tags_of_ivs_are_kept_for_the_others(world: World) -> None:
    @dataclass
    class Tagged(Ivs):
        tags: Mapping[str, str] = field(default_factory=lambda: {"tenant": "acme"})

        async def get_stage(self, region: str, stage: str) -> Stage:
            return replace(await super().get_stage(region, stage), tags=self.tags)

    world.ivs = Tagged()
    replica = world.replica()
    await replica.get(A, CALLER)
    await settled(replica)
    assert world.memory.kept[A].tags == {"tenant": "acme"}
    await replica.aclose()
