from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.revocation.support import IvsModel, Replica, VirtualTime
from tokensvc.store import open_engine, upgrade

MakeReplica = Callable[[], Awaitable[Replica]]


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def ivs(time: VirtualTime) -> IvsModel:
    return IvsModel(time)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    return url


@pytest.fixture
async def make_replica(
    database_url: str, ivs: IvsModel, time: VirtualTime
) -> AsyncIterator[MakeReplica]:
    made = []

    async def make() -> Replica:
        engine = open_engine(database_url)
        replica = Replica(engine, ivs, time, seed=len(made))
        await replica.bans.refresh()
        made.append((engine, replica))
        return replica

    yield make
    for engine, replica in made:
        await replica.close()
        await engine.dispose()


@pytest.fixture
async def replica(make_replica: MakeReplica) -> Replica:
    return await make_replica()


@pytest.fixture
async def other(make_replica: MakeReplica) -> Replica:
    return await make_replica()
