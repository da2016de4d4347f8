"""A process that dies at any call, before or after its effect, leaves a ring that heals (promise 4).

Each scenario is run once for every call it makes, dying at that one; then another process goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest

from tests.keyring.support import REGION, Killed, World
from tokensvc.errors import IvsUnavailableError, TokenServiceError
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.record import DeleteReason, KeyPhase

Scenario = Callable[[World, RingManager], Awaitable[object]]
_MOST_POINTS = 100


async def first_key(world: World, manager: RingManager) -> None:
    await manager.prepare(REGION)
    await manager.tick(REGION)


async def rotation(world: World, manager: RingManager) -> None:
    world.clock.now += world.policy.period
    await manager.tick(REGION)


async def deletion(world: World, manager: RingManager) -> None:
    await manager.rotate(REGION)
    world.clock.now += world.policy.drain
    await manager.tick(REGION)


async def replacement(world: World, manager: RingManager) -> None:
    if world.ring().active is not None and world.active.arn in world.ivs.keys:
        world.ivs.drop(world.active.arn or "")
    await manager.tick(REGION)


async def invalidation(world: World, manager: RingManager) -> None:
    if world.ring().active is not None:
        await manager.invalidate(REGION, world.active.key_id)


SCENARIOS: dict[str, tuple[Scenario, bool]] = {
    "first key": (first_key, False),
    "rotation": (rotation, True),
    "deletion": (deletion, True),
    "replacement": (replacement, True),
    "invalidation": (invalidation, True),
}


class Fault:
    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.seen = at, error, 0

    def point(self, operation: str) -> None:
        self.seen += 1
        if self.seen == self.at + 1:
            raise self.error

    def install(self, world: World) -> None:
        for part in (world.ivs, world.store):
            part.before = part.after = self.point

    @staticmethod
    def remove(world: World) -> None:
        for part in (world.ivs, world.store):
            part.before = part.after = lambda operation: None


@pytest.mark.parametrize("conflicts", [True, False])
@pytest.mark.parametrize("kind", ["killed", "answer lost"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_dying_at_every_call(name: str, kind: str, conflicts: bool) -> None:
    scenario, begun = SCENARIOS[name]
    for at in range(_MOST_POINTS):
        world = World()
        world.ivs.same_material_conflicts = conflicts
        manager = await world.settled() if begun else world.manager()
        signed_before = world.ring().active
        fault = Fault(at, Killed() if kind == "killed" else IvsUnavailableError("lost"))
        fault.install(world)
        with contextlib.suppress(Killed, TokenServiceError):
            await scenario(world, manager)
        Fault.remove(world)
        _check_halfway(world)
        await _heals(world)
        if name == "rotation" and signed_before is not None:
            assert world.active.key_id != signed_before.key_id
        if fault.seen <= at:
            assert at > 5, "the scenario makes too few calls to be the one that is meant"
            return
    raise AssertionError("the scenario makes more calls than were tried")


def _check_halfway(world: World) -> None:
    held = world.ivs.keys
    for key in world.ring().keys:
        if key.phase is KeyPhase.ACTIVE and key.arn not in held:
            # Only where somebody else deleted it, and that was not stored yet.
            assert key.arn not in world.ivs.deleted
        if key.delete_reason is DeleteReason.COMPROMISED:
            assert key.sealed_private_key is None


async def _heals(world: World) -> None:
    manager = world.manager()
    status = await manager.tick(REGION)
    assert status.problems == ()
    assert (world.phases()["ACTIVE"], world.phases()["STANDBY"]) == (1, 1)
    assert (await manager.load_view()).signing_key(REGION).arn in world.ivs.keys
    stored = {key.arn for key in world.ring().keys if key.phase is not KeyPhase.DELETED}
    assert set(world.ivs.keys) == stored
    assert len(stored) == len(
        [key for key in world.ring().keys if key.phase is not KeyPhase.DELETED]
    )
