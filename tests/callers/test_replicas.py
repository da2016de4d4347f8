"""Two replicas over one database: what the command line changes, both know after their next look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.callers.support import Clock
from tokensvc.callers import ApiKey, CallerDirectory, SqlCallerStore
from tokensvc.errors import UnauthenticatedError
from tokensvc.store import open_engine, upgrade


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def replicas(tmp_path: Path, clock: Clock) -> AsyncIterator[list[CallerDirectory]]:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    upgrade(url)
    engines = [open_engine(url), open_engine(url)]
    yield [CallerDirectory(SqlCallerStore(engine, clock), clock) for engine in engines]
    for engine in engines:
        await engine.dispose()


@pytest.fixture
async def operator(tmp_path: Path, clock: Clock, replicas) -> AsyncIterator[SqlCallerStore]:
    engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    yield SqlCallerStore(engine, clock)
    await engine.dispose()


def knows(replica: CallerDirectory, api_key: ApiKey) -> bool:
    try:
        replica.authenticate(f"Bearer {api_key.reveal()}")
    except UnauthenticatedError:
        return False
    return True


async def test_a_callers_whole_life_is_seen_by_all_replicas(replicas, operator, clock):
    async def seen(*keys: ApiKey) -> set[tuple[bool, ...]]:
        for replica in replicas:
            await replica.refresh()
        return {tuple(knows(replica, key) for key in keys) for replica in replicas}

    assert await seen() == {()}
    _, first = await operator.add("game", ["tokens:mint"], clock.now + 1000)
    assert await seen(first) == {(True,)}
    _, second = await operator.rotate("game", old_valid_until=clock.now + 60)
    assert await seen(first, second) == {(True, True)}
    clock.now += 60
    assert await seen(first, second) == {(False, True)}
    await operator.revoke("game")
    assert await seen(first, second) == {(False, False)}


async def test_nothing_changes_before_the_next_look(replicas, operator):
    _, key = await operator.add("game", ["tokens:mint"])
    for replica in replicas:
        await replica.refresh()
    await operator.revoke("game")
    assert [knows(replica, key) for replica in replicas] == [True, True]
    assert [await replica.refresh() for replica in replicas] == [True, True]
    assert [knows(replica, key) for replica in replicas] == [False, False]


async def test_the_file_holds_no_secret(replicas, operator, tmp_path):
    _, key = await operator.add("game", ["tokens:mint"])
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.secret_sha256 in stored
    assert key.reveal().split("_", 2)[2].encode() not in stored
