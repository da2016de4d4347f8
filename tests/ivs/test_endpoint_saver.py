"""Promise: a service that starts while IVS is down mints for the stages it knew; saving costs no mint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.ivs.test_stages import CALLER, START, TTL, A, B, C, Ivs, arn, settled
from tokensvc.errors import IvsUnavailableError, StageNotFoundError, StoreUnavailableError
from tokensvc.ivs.endpoint_store import KnownStage
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS, StageEndpointCache
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints


@dataclass
class Memory:
    """An EndpointStore with faults."""

    kept: dict[StageArn, KnownStage] = field(default_factory=dict)
    fault: Exception | None = None
    held: asyncio.Event | None = None
    saves: list[int] = field(default_factory=list)
    loads: list[tuple[float, int]] = field(default_factory=list)
    finds: int = 0

    async def load(self, *, since: float, limit: int) -> list[KnownStage]:
        self.loads.append((since, limit))
        if self.fault is not None:
            raise self.fault
        found = [known for known in self.kept.values() if known.fetched_at >= since]
        return sorted(found, key=lambda known: -known.fetched_at)[:limit]

    async def find(self, stage: StageArn, *, since: float) -> KnownStage | None:
        self.finds += 1
        if self.held is not None:
            await self.held.wait()
        if self.fault is not None:
            raise self.fault
        known = self.kept.get(stage)
        return known if known is not None and known.fetched_at >= since else None

    async def save(self, known: Sequence[KnownStage], gone: Sequence[StageArn]) -> None:
        if self.held is not None:
            await self.held.wait()
        if self.fault is not None:
            raise self.fault
        self.saves.append(len(known) + len(gone))
        self.kept |= {one.stage: one for one in known}
        for stage in gone:
            self.kept.pop(stage, None)


def cache(ivs: Ivs, memory: Memory, **options: float) -> StageEndpointCache:
    return StageEndpointCache(
        ivs,  # type: ignore[arg-type]
        lambda: ivs.now,
        ttl_seconds=TTL,
        jitter=lambda: 0.0,
        store=memory,
        **options,  # type: ignore[arg-type]
    )


async def test_endpoints_outlive_the_process_and_an_outage() -> None:
    ivs, memory = Ivs(), Memory()
    first = cache(ivs, memory)
    known = await first.get(A, CALLER)
    await settled(first)
    await first.aclose()
    ivs.now += 86_400
    ivs.fault = IvsUnavailableError("down")
    second = cache(ivs, memory)
    assert await second.restore() == 1
    assert await second.get(A, CALLER) == known
    await settled(second)
    await second.aclose()


async def test_restored_endpoints_keep_their_age() -> None:
    memory = Memory({A: KnownStage(A, StageEndpoints("wss://old", "https://old"), START)})
    ivs = Ivs(now=START + TTL - 1, generation=1)
    it = cache(ivs, memory)
    await it.restore()
    assert (await it.get(A, CALLER)).events == "wss://old"
    ivs.now += 2
    assert (await it.get(A, CALLER)).events == "wss://old"
    await settled(it)
    assert (await it.get(A, CALLER)).events == "wss://events/1"
    assert ivs.calls[str(A)] == 1


@pytest.mark.parametrize("age", [HARD_LIMIT_SECONDS, -1.0], ids=["14 days", "the future"])
async def test_what_may_not_be_used_is_not_restored(age: float) -> None:
    class Careless(Memory):
        async def load(self, *, since: float, limit: int) -> list[KnownStage]:
            return list(self.kept.values())

    old = KnownStage(A, StageEndpoints("wss://old", "https://old"), START - age)
    it = cache(Ivs(), Careless({A: old}))
    assert await it.restore() == 0
    assert (await it.get(A, CALLER)).events == "wss://events/0"
    await it.aclose()


async def test_no_more_is_restored_than_there_is_room_for_and_the_latest_stays_longest() -> None:
    ivs, memory = Ivs(), Memory()
    for age, stage in enumerate((A, B, C)):
        memory.kept[stage] = KnownStage(stage, ivs.endpoints(str(stage)), START - age)
    it = cache(ivs, memory, max_entries=2)
    assert await it.restore() == 2
    assert memory.loads == [(START - HARD_LIMIT_SECONDS, 2)]
    await it.get(arn("new"), CALLER)
    assert [it.peek(stage, START) is not None for stage in (A, B, C)] == [True, False, False]
    await it.aclose()


async def test_what_ivs_said_since_the_start_is_not_overwritten() -> None:
    ivs = Ivs()
    it = cache(ivs, Memory({A: KnownStage(A, StageEndpoints("wss://old", "https://old"), START)}))
    await it.get(A, CALLER)
    await it.restore()
    assert (await it.get(A, CALLER)).events == "wss://events/0"
    await it.aclose()


async def test_a_stage_that_is_gone_is_forgotten_and_made_up_ones_reach_no_store() -> None:
    ivs, memory = Ivs(), Memory()
    it = cache(ivs, memory)
    await it.get(A, CALLER)
    await settled(it)
    ivs.gone |= {str(A), str(B)}
    ivs.now += TTL + 1
    await it.get(A, CALLER)
    await settled(it)
    assert memory.kept == {}
    saves = len(memory.saves)
    with pytest.raises(StageNotFoundError):
        await it.get(B, CALLER)
    await settled(it)
    assert len(memory.saves) == saves


async def test_a_store_that_hangs_holds_no_mint_and_gets_the_rest_in_one_go() -> None:
    ivs, memory = Ivs(), Memory(held=asyncio.Event())
    it = cache(ivs, memory)
    for stage in (A, B, C):
        await it.get(stage, CALLER)
        await settled(it)
    assert memory.kept == {}
    assert memory.held is not None
    memory.held.set()
    await settled(it)
    assert set(memory.kept) == {A, B, C}
    assert memory.saves == [1, 2]


async def test_what_a_store_refused_is_saved_with_the_next_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ivs, memory = Ivs(), Memory(fault=StoreUnavailableError("full"))
    it = cache(ivs, memory)
    await it.get(A, CALLER)
    await settled(it)
    assert "stage_endpoints_not_saved" in capsys.readouterr().out
    memory.fault = None
    await it.get(B, CALLER)
    await settled(it)
    assert set(memory.kept) == {A, B}


async def test_what_was_fetched_while_a_save_failed_is_what_is_saved() -> None:
    ivs, memory = Ivs(), Memory(fault=StoreUnavailableError("full"), held=asyncio.Event())
    it = cache(ivs, memory)
    await it.get(A, CALLER)
    await settled(it)
    ivs.now, ivs.generation = ivs.now + TTL + 1, 1
    await it.get(A, CALLER)
    await settled(it)
    assert memory.held is not None
    memory.held.set()
    await settled(it)
    memory.fault = None
    await it.aclose()
    assert memory.kept[A].endpoints.events == "wss://events/1"


async def test_what_is_unsaved_is_bounded() -> None:
    ivs, memory = Ivs(), Memory(fault=StoreUnavailableError("full"))
    it = cache(ivs, memory, max_entries=3)
    for number in range(20):
        await it.get(arn(f"s{number}"), CALLER)
        await settled(it)
    memory.fault = None
    await it.aclose()
    assert set(memory.kept) == {arn("s17"), arn("s18"), arn("s19")}


async def test_closing_saves_what_is_left_and_gives_up_on_a_broken_store() -> None:
    ivs, memory = Ivs(), Memory(fault=StoreUnavailableError("full"))
    it = cache(ivs, memory)
    await it.get(A, CALLER)
    await settled(it)
    await it.aclose()
    memory.fault = None
    await it.aclose()
    assert set(memory.kept) == {A}


async def test_a_store_that_fails_at_start_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    it = cache(Ivs(), Memory(fault=StoreUnavailableError("locked")))
    assert await it.restore() == 0
    assert "stage_endpoints_not_restored" in capsys.readouterr().out
    assert (await it.get(A, CALLER)).events == "wss://events/0"


async def test_a_bug_in_the_store_is_logged_and_hurts_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    it = cache(Ivs(), Memory(fault=ZeroDivisionError("a bug")))
    await it.get(A, CALLER)
    await settled(it)
    assert "stage_endpoints_save_crashed" in capsys.readouterr().out
    assert (await it.get(A, CALLER)).events == "wss://events/0"


async def test_without_a_store_there_is_nothing_to_restore() -> None:
    assert await Ivs().cache().restore() == 0
