"""Replicas follow within a poll, and stop signing with what may be gone (promises 2 and 5)."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.keyring.support import OTHER_REGION, REGION, FakeClock, World
from tokensvc.errors import KmsError, NoSigningKeyError, StoreUnavailableError
from tokensvc.keyring.follower import RingFollower

MAX_AGE = 30.0


@pytest.fixture
def monotonic() -> FakeClock:
    return FakeClock(now=100.0)


def follower(world: World, monotonic: FakeClock) -> RingFollower:
    return RingFollower(world.manager(), clock=monotonic, max_age=MAX_AGE)


async def test_nothing_signs_before_the_first_read(world: World, monotonic: FakeClock) -> None:
    await world.settled()
    replica = follower(world, monotonic)
    with pytest.raises(NoSigningKeyError):
        replica.view().signing_key(REGION)
    await replica.refresh()
    assert replica.view().signing_key(REGION).key_id == world.active.key_id


async def test_a_replica_takes_a_rotation_over_with_its_next_read(
    world: World, monotonic: FakeClock
) -> None:
    rotator = await world.settled()
    replica = follower(world, monotonic)
    await replica.refresh()
    before = replica.view()
    await rotator.rotate(REGION)
    await replica.refresh()
    assert replica.view().signing_key(REGION).key_id == world.active.key_id
    # Whoever took the old view works on it to the end.
    assert before.signing_key(REGION).key_id != world.active.key_id


async def test_an_unchanged_ring_is_not_loaded_again(world: World, monotonic: FakeClock) -> None:
    await world.settled()
    replica = follower(world, monotonic)
    await replica.refresh()
    view = replica.view()
    reads: list[str] = []
    world.store.before = reads.append
    await replica.refresh()
    assert replica.view() is view
    assert len(reads) == 1
    await replica.refresh(reload=True)
    assert replica.view() is not view


async def test_a_view_that_is_too_old_signs_nothing_and_says_so(
    world: World, monotonic: FakeClock
) -> None:
    await world.settled()
    replica = follower(world, monotonic)
    await replica.refresh()
    world.store.before = _fail
    for _ in range(3):
        monotonic.now += MAX_AGE / 3
        with pytest.raises(StoreUnavailableError):
            await replica.refresh()
        assert replica.view().signing_key(REGION)
    assert replica.age() == MAX_AGE
    monotonic.now += 0.001
    with pytest.raises(NoSigningKeyError, match="could not be read for more than 30 seconds"):
        replica.view().signing_key(REGION)
    # Tokens can still be looked at.
    arn = world.active.arn
    assert arn is not None
    assert replica.view().public_key_pem(arn) == world.active.public_key_pem
    world.store.before = lambda operation: None
    await replica.refresh()
    assert replica.view().signing_key(REGION).key_id == world.active.key_id


async def test_the_age_counts_from_the_question_and_not_from_the_answer(
    world: World, monotonic: FakeClock
) -> None:
    await world.settled()
    replica = follower(world, monotonic)

    def slow(operation: str) -> None:
        monotonic.now += 5.0

    world.store.before = slow
    await replica.refresh()
    assert replica.age() == 10.0


async def test_a_standby_is_open_before_it_is_promoted(world: World, monotonic: FakeClock) -> None:
    """A key manager that is down at the moment of a rotation takes no replica out."""
    rotator = await world.settled()
    sealer = _CountingSealer(world)
    replica = RingFollower(world.manager(sealer=sealer), clock=monotonic, max_age=MAX_AGE)
    await replica.refresh()
    sealer.down = True
    await rotator.rotate(REGION)
    await replica.refresh()
    assert replica.view().signing_key(REGION).key_id == world.active.key_id


async def test_a_key_manager_that_was_down_at_the_start_is_asked_again(
    world: World, monotonic: FakeClock
) -> None:
    await world.settled()
    await world.manager().prepare(OTHER_REGION)
    sealer = _CountingSealer(world)
    sealer.down = True
    replica = RingFollower(world.manager(sealer=sealer), clock=monotonic, max_age=MAX_AGE)
    with capture_logs() as logs:
        for _ in range(3):
            await replica.refresh()
    with pytest.raises(NoSigningKeyError, match="KMS is down"):
        replica.view().signing_key(REGION)
    said = [line["region"] for line in logs if line["event"] == "key_may_not_sign"]
    assert sorted(said) == [REGION, OTHER_REGION]
    sealer.down = False
    await replica.refresh()
    assert replica.view().regions == (REGION, OTHER_REGION)


async def test_a_key_manager_that_hangs_costs_the_time_of_one_call(
    world: World, monotonic: FakeClock
) -> None:
    """Else, with enough Regions, the view would be too old to sign with when it is read."""
    for region in (REGION, OTHER_REGION):
        await world.manager().tick(region)
    everybody_asks = asyncio.Event()
    asked = 0

    class Hanging:
        async def seal(self, private_key: bytes, context: object) -> bytes:
            raise AssertionError("a replica seals nothing")

        async def unseal(self, sealed: bytes, context: object) -> bytes:
            nonlocal asked
            asked += 1
            if asked == 4:
                everybody_asks.set()
            await everybody_asks.wait()
            raise KmsError("AWS KMS did not answer in time.")

    replica = RingFollower(world.manager(sealer=Hanging()), clock=monotonic, max_age=MAX_AGE)
    await asyncio.wait_for(replica.refresh(), 30)
    assert replica.view().reasons.keys() == {REGION, OTHER_REGION}


class _CountingSealer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.down = False

    async def seal(self, private_key: bytes, context: object) -> bytes:
        raise AssertionError("a replica seals nothing")

    async def unseal(self, sealed: bytes, context: object) -> bytes:
        if self.down:
            raise StoreUnavailableError("KMS is down")
        return await self.world.sealer.unseal(sealed, context)  # type: ignore[arg-type]


def _fail(operation: str) -> None:
    raise StoreUnavailableError("The database does not answer.")
