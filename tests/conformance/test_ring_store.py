"""What a store of key rings must do on every kind of database."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.callers.support import Clock
from tests.keyring.support import NOW, OTHER_REGION, REGION, RING, MemoryRingStore, arn
from tokensvc.errors import RingConflictError, RingDamagedError, StoreUnavailableError
from tokensvc.keyring import phases
from tokensvc.keyring.phases import Drained
from tokensvc.keyring.record import IllegalKeyStateError, KeyPhase, KeyRecord, RingState
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.keyring.store import RingStore, load_rings
from tokensvc.store import tables


@pytest.fixture(params=["database", "memory"])
def store(request: pytest.FixtureRequest, engine: AsyncEngine, clock: Clock) -> RingStore:
    """The store in memory, on which the tests of the key ring rely, must do the same."""
    if request.param == "memory":
        return MemoryRingStore()
    return SqlRingStore(engine, RING, clock)


@pytest.fixture
def sql(engine: AsyncEngine, clock: Clock) -> SqlRingStore:
    return SqlRingStore(engine, RING, clock)


def generated(key_id: str = "k1", region: str = REGION, at: float = NOW) -> KeyRecord:
    return KeyRecord(
        key_id=key_id,
        region=region,
        phase=KeyPhase.GENERATED,
        name=f"name-{key_id}",
        public_key_pem="-----BEGIN PUBLIC KEY-----",
        sealed_private_key=b"\x00\xff sealed",
        created_at=at,
    )


def active(key_id: str = "k1", region: str = REGION) -> KeyRecord:
    standby = phases.stand_by(generated(key_id, region), arn=arn(key_id, region), now=NOW)
    checked = phases.checked(standby, now=NOW + 0.25)
    return phases.activate(checked, longest_ttl=600.0, now=NOW + 0.5)


async def test_a_region_without_a_ring_is_empty_at_version_0(store: RingStore) -> None:
    assert await store.load(REGION) == RingState(REGION, 0)
    assert await store.load_all() == ()
    assert await store.versions() == {}


async def test_what_was_saved_is_loaded(store: RingStore) -> None:
    saved = await store.save(RingState(REGION, 0), (generated(),))
    assert saved.version == 1
    assert saved.owner
    assert await store.load(REGION) == saved
    assert await store.load_all() == (saved,)
    assert await store.versions() == {REGION: 1}


async def test_every_field_of_every_phase_survives(store: RingStore) -> None:
    one = active("k1")
    retiring = phases.retire(active("k2"), now=NOW + 1.125)
    condemned = phases.condemn(phases.retire(active("k3"), now=NOW), Drained("k3", NOW), now=NOW)
    deleted = phases.delete(dataclasses.replace(condemned, key_id="k4", arn=arn("k4")), now=NOW)
    gone = phases.gone(active("k5"), now=NOW)
    invalid = phases.invalidate(active("k6"), now=NOW)
    keys = (one, retiring, condemned, deleted, gone, invalid, generated("k7"))
    saved = await store.save(RingState(REGION, 0), keys)
    loaded = await store.load(REGION)
    assert sorted(loaded.keys, key=lambda key: key.key_id) == list(keys)
    assert loaded.version == saved.version


async def test_a_save_on_an_old_version_writes_nothing(store: RingStore) -> None:
    """Promise 5: the version is the fencing number."""
    first = await store.save(RingState(REGION, 0), (generated(),))
    second = await store.save(first, first.with_keys(generated("k2")))
    for stale in (RingState(REGION, 0), first):
        with pytest.raises(RingConflictError):
            await store.save(stale, stale.with_keys(generated("k9")))
    assert await store.load(REGION) == second


async def test_of_savers_of_one_version_exactly_one_succeeds(store: RingStore) -> None:
    ring = await store.save(RingState(REGION, 0), (generated(),))
    results = await asyncio.gather(
        *(store.save(ring, ring.with_keys(generated(f"r{n}"))) for n in range(5)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, RingState)]
    assert len(won) == 1
    assert all(isinstance(r, RingState | RingConflictError) for r in results)
    assert (await store.load(REGION)).version == 2


async def test_of_makers_of_one_ring_exactly_one_succeeds(store: RingStore) -> None:
    results = await asyncio.gather(
        *(store.save(RingState(REGION, 0), (generated(f"r{n}"),)) for n in range(5)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, RingState)]
    assert len(won) == 1
    assert await store.load(REGION) == won[0]


async def test_regions_do_not_disturb_each_other(store: RingStore) -> None:
    here = await store.save(RingState(REGION, 0), (active("k1"),))
    there = await store.save(RingState(OTHER_REGION, 0), (active("k2", OTHER_REGION),))
    here = await store.save(here, here.with_keys(generated("k3")))
    assert await store.load_all() == (here, there)
    assert await store.versions() == {REGION: 2, OTHER_REGION: 1}
    assert here.owner != there.owner


async def test_the_owner_never_changes(store: RingStore) -> None:
    ring = await store.save(RingState(REGION, 0), (generated(),))
    owner = ring.owner
    for number in range(3):
        ring = await store.save(ring, ring.with_keys(generated(f"n{number}")))
    assert ring.owner == (await store.load(REGION)).owner == owner


async def test_a_rotation_is_one_write(store: RingStore) -> None:
    old = active("k1")
    standby = phases.checked(phases.stand_by(generated("k2"), arn=arn("k2"), now=NOW), now=NOW)
    ring = await store.save(RingState(REGION, 0), (old, standby))
    new = phases.activate(standby, longest_ttl=600.0, now=NOW)
    saved = await store.save(ring, ring.with_keys(phases.retire(old, now=NOW), new))
    assert saved.active == new
    assert (await store.load(REGION)).active == new


async def test_a_deleted_key_may_be_dropped_and_no_other(store: RingStore) -> None:
    deleted = phases.gone(active("k1"), now=NOW)
    ring = await store.save(RingState(REGION, 0), (deleted, active("k2")))
    with pytest.raises(IllegalKeyStateError, match="vanish"):
        await store.save(ring, (deleted,))
    assert await store.load(REGION) == ring
    dropped = await store.save(ring, (ring.active,) if ring.active else ())
    assert [key.key_id for key in (await store.load(REGION)).keys] == ["k2"]
    assert dropped.version == 2


async def test_another_ring_id_is_another_ring(
    sql: SqlRingStore, second_engine: AsyncEngine, clock: Clock
) -> None:
    saved = await sql.save(RingState(REGION, 0), (active("k1"),))
    other = SqlRingStore(second_engine, "other", clock)
    assert await other.load(REGION) == RingState(REGION, 0)
    theirs = await other.save(RingState(REGION, 0), (active("k2"),))
    assert theirs.owner != saved.owner
    assert await sql.load_all() == (saved,)


async def test_another_replica_sees_what_was_saved_and_is_fenced(
    sql: SqlRingStore, second_engine: AsyncEngine, clock: Clock
) -> None:
    replica = SqlRingStore(second_engine, RING, clock)
    ring = await sql.save(RingState(REGION, 0), (generated(),))
    assert await replica.load(REGION) == ring
    await replica.save(ring, ring.with_keys(generated("k2")))
    with pytest.raises(RingConflictError):
        await sql.save(ring, ring.with_keys(generated("k3")))


async def test_the_database_itself_refuses_a_second_active_key(
    sql: SqlRingStore, engine: AsyncEngine
) -> None:
    await sql.save(RingState(REGION, 0), (active("k1"), generated("k2")))
    with pytest.raises(Exception, match=r"(?i)unique"):
        async with engine.begin() as connection:
            await connection.execute(
                update(tables.keys).where(tables.keys.c.key_id == "k2").values(phase="ACTIVE")
            )


@pytest.mark.parametrize("damage", [{"phase": "SIGNING"}, {"arn": None}, {"phase": "DELETED"}])
async def test_a_row_that_makes_no_sense_is_an_error_and_not_a_ring(
    sql: SqlRingStore, engine: AsyncEngine, damage: dict[str, str | None]
) -> None:
    await sql.save(RingState(REGION, 0), (active("k1"),))
    async with engine.begin() as connection:
        await connection.execute(update(tables.keys).values(**damage))
    with pytest.raises(RingDamagedError, match="is damaged"):
        await sql.load(REGION)


async def test_a_damaged_ring_hides_no_other_region(sql: SqlRingStore, engine: AsyncEngine) -> None:
    await sql.save(RingState(REGION, 0), (active("k1"),))
    other = await sql.save(RingState("us-east-1", 0), ())
    async with engine.begin() as connection:
        await connection.execute(update(tables.keys).values(phase="SIGNING"))
    rings = await load_rings(sql)
    assert rings.whole == (other,)
    assert list(rings.damaged) == [REGION]
    assert "SIGNING" in rings.damaged[REGION]


async def test_a_ring_whose_rows_were_deleted_is_empty_and_keeps_its_version(
    sql: SqlRingStore, engine: AsyncEngine
) -> None:
    saved = await sql.save(RingState(REGION, 0), (active("k1"),))
    async with engine.begin() as connection:
        await connection.execute(delete(tables.keys))
    assert await sql.load(REGION) == RingState(REGION, saved.version, (), saved.owner)


async def test_a_closed_database_is_store_unavailable(
    sql: SqlRingStore, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE keys")
    for work in (sql.load(REGION), sql.load_all(), sql.save(RingState(REGION, 0), (active(),))):
        with pytest.raises(StoreUnavailableError):
            await work
