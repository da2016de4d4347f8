"""Promise: replicas share what is known of stages, and the latest answer of IVS wins."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import StoreUnavailableError
from tokensvc.issuing.endpoint_store import SqlEndpointStore
from tokensvc.ivs.endpoint_store import KnownStage
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS
from tokensvc.store.tables import known_stages
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints

NOW = 1_780_000_000.0
A, B, C = (StageArn("eu-central-1", "123456789012", name) for name in "abc")


@pytest.fixture
def store(engine: AsyncEngine) -> SqlEndpointStore:
    return SqlEndpointStore(engine, lambda: NOW)


def known(stage: StageArn, fetched_at: float, name: str = "x") -> KnownStage:
    return KnownStage(stage, StageEndpoints(f"wss://{name}", f"https://{name}"), fetched_at)


async def everything(store: SqlEndpointStore) -> list[KnownStage]:
    return await store.load(since=0, limit=100)


async def test_what_was_saved_comes_back_the_latest_first(store: SqlEndpointStore) -> None:
    saved = [known(A, NOW - 2, "a"), known(B, NOW, "b"), known(C, NOW - 1.5, "c")]
    await store.save(saved, [])
    assert await everything(store) == [saved[1], saved[2], saved[0]]
    assert await store.load(since=NOW - 1.5, limit=100) == [saved[1], saved[2]]
    assert await store.load(since=0, limit=1) == [saved[1]]


async def test_an_older_answer_of_another_replica_does_not_win(store: SqlEndpointStore) -> None:
    await store.save([known(A, NOW, "new")], [])
    await store.save([known(A, NOW - 10, "old")], [])
    assert await everything(store) == [known(A, NOW, "new")]
    await store.save([known(A, NOW + 1, "newer")], [])
    assert await everything(store) == [known(A, NOW + 1, "newer")]


async def test_one_stage_is_found_unless_it_is_older_than_wanted(store: SqlEndpointStore) -> None:
    await store.save([known(A, NOW, "a"), known(B, NOW - 10, "b")], [])
    assert await store.find(A, since=NOW) == known(A, NOW, "a")
    assert await store.find(B, since=NOW - 10) == known(B, NOW - 10, "b")
    assert await store.find(B, since=NOW - 9) is None
    assert await store.find(C, since=0) is None


@pytest.mark.parametrize("tags", [{}, {"tenant": "acme", "name": "\u00e9"}, None])
async def test_tags_are_kept_with_the_rest(
    store: SqlEndpointStore, tags: dict[str, str] | None
) -> None:
    tagged = replace(known(A, NOW), tags=tags)
    await store.save([tagged], [])
    assert await store.find(A, since=NOW) == tagged
    assert await everything(store) == [tagged]


async def test_tags_of_another_time_are_not_known(
    store: SqlEndpointStore, engine: AsyncEngine
) -> None:
    await store.save([replace(known(A, NOW - 5), tags={"tenant": "acme"})], [])
    # What a replica of the version before the tags does: it moves the time, and knows no tags.
    async with engine.begin() as connection:
        await connection.execute(update(known_stages).values(fetched_at=NOW))
    assert await store.find(A, since=NOW) == known(A, NOW)


async def test_tags_that_cannot_be_read_are_not_known(
    store: SqlEndpointStore, engine: AsyncEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    await store.save([replace(known(A, NOW), tags={"tenant": "acme"})], [])
    async with engine.begin() as connection:
        await connection.execute(update(known_stages).values(tags="[1]"))
    assert await store.find(A, since=NOW) == known(A, NOW)
    assert "known_stage_tags_unreadable" in capsys.readouterr().out


async def test_what_is_gone_and_what_is_too_old_is_deleted(store: SqlEndpointStore) -> None:
    await store.save([known(A, NOW), known(B, NOW - HARD_LIMIT_SECONDS - 1), known(C, NOW)], [])
    await store.save([], [C])
    assert await everything(store) == [known(A, NOW)]


async def test_a_row_that_cannot_be_read_is_left_out(
    store: SqlEndpointStore, engine: AsyncEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    await store.save([known(A, NOW)], [])
    row = {"stage_arn": "nonsense", "events_url": "x", "whip_url": "y", "fetched_at": NOW}
    async with engine.begin() as connection:
        await connection.execute(insert(known_stages).values(row))
    assert await everything(store) == [known(A, NOW)]
    assert "known_stage_unreadable" in capsys.readouterr().out


async def test_two_replicas_that_save_the_same_stages_both_succeed(
    store: SqlEndpointStore, engine: AsyncEngine
) -> None:
    other = SqlEndpointStore(engine, lambda: NOW)
    await asyncio.gather(
        store.save([known(stage, NOW) for stage in (A, B, C)], []),
        other.save([known(stage, NOW + 1) for stage in (C, B, A)], []),
    )
    async with engine.connect() as connection:
        times = (await connection.execute(select(known_stages.c.fetched_at))).scalars().all()
    assert times == [NOW + 1] * 3


async def test_a_database_that_is_broken_is_our_error(
    store: SqlEndpointStore, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(known_stages.drop)
    with pytest.raises(StoreUnavailableError):
        await store.load(since=0, limit=1)
    with pytest.raises(StoreUnavailableError):
        await store.find(A, since=0)
    with pytest.raises(StoreUnavailableError):
        await store.save([known(A, NOW)], [])
