"""A master key can be changed under a running ring, and a cut-off change is taken up again."""

from __future__ import annotations

import pytest

from tests.keyring.support import OTHER_REGION, REGION, RING, World
from tokensvc.errors import KmsError, SealError, StoreUnavailableError
from tokensvc.keyring.record import KeyPhase
from tokensvc.keyring.reseal import AnySealer, reseal
from tokensvc.keyring.sealing import LocalSealer, SealContext

NEW = LocalSealer(bytes(32))
CONTEXT = SealContext(RING, REGION, "k1")


async def test_every_half_opens_under_the_new_key_only(world: World) -> None:
    await world.settled()
    await world.manager().tick(OTHER_REGION)
    report = await reseal(world.store, RING, old=world.sealer, new=NEW)
    sealed = [key for ring in world.store.rings.values() for key in ring.keys]
    assert sorted(report.resealed) == sorted(key.key_id for key in sealed)
    assert len(sealed) == 4
    view = await world.manager(sealer=NEW).load_view()
    assert view.regions == (REGION, OTHER_REGION)
    assert (await world.manager().load_view()).regions == ()


async def test_running_it_again_changes_nothing(world: World) -> None:
    await world.settled()
    await reseal(world.store, RING, old=world.sealer, new=NEW)
    version = world.ring().version
    report = await reseal(world.store, RING, old=world.sealer, new=NEW)
    assert (report.resealed, len(report.already), world.ring().version) == ((), 2, version)


async def test_cut_off_between_regions_it_goes_on(world: World) -> None:
    await world.settled()
    await world.manager().tick(OTHER_REGION)
    saves: list[str] = []

    def fail_second(operation: str) -> None:
        saves.extend([operation] if operation == "save" else [])
        if len(saves) == 2:
            raise StoreUnavailableError("gone")

    world.store.before = fail_second
    with pytest.raises(StoreUnavailableError):
        await reseal(world.store, RING, old=world.sealer, new=NEW)
    world.store.before = lambda operation: None
    # In between, replicas that know both keys sign everywhere.
    both = await world.manager(sealer=AnySealer(NEW, world.sealer)).load_view()
    assert both.regions == (REGION, OTHER_REGION)
    report = await reseal(world.store, RING, old=world.sealer, new=NEW)
    assert (len(report.resealed), len(report.already)) == (2, 2)


async def test_a_half_under_neither_key_stops_it_and_changes_nothing(world: World) -> None:
    await world.settled()
    before = world.ring()
    with pytest.raises(SealError, match="another master key"):
        await reseal(world.store, RING, old=LocalSealer(bytes([7]) * 32), new=NEW)
    assert world.ring() == before


async def test_keys_without_a_private_half_are_left_alone(world: World) -> None:
    manager = await world.settled()
    await manager.rotate(REGION)
    report = await reseal(world.store, RING, old=world.sealer, new=NEW)
    retiring = world.ring().in_phase(KeyPhase.RETIRING)[0]
    assert retiring.key_id not in report.resealed


async def test_a_sealer_of_many_seals_under_the_first(world: World) -> None:
    manager = world.manager(sealer=AnySealer(NEW, world.sealer))
    await manager.prepare(REGION)
    assert (await world.manager(sealer=NEW).load_view()).regions == (REGION,)
    with pytest.raises(SealError, match="another master key"):
        await AnySealer(LocalSealer(bytes([9]) * 32), world.sealer).unseal(
            world.active.sealed_private_key or b"", _context(world)
        )


def _context(world: World) -> SealContext:
    return SealContext(RING, REGION, world.active.key_id)


class Forgetful:
    """Seals what nobody can open again."""

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        return await NEW.seal(bytes(len(private_key)), context)

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        return await NEW.unseal(sealed, context)


async def test_the_only_copy_is_not_replaced_by_one_that_does_not_open(world: World) -> None:
    await world.settled()
    before = world.ring()
    with pytest.raises(SealError, match="does not open under the new master key"):
        await reseal(world.store, RING, old=world.sealer, new=Forgetful())
    assert world.ring() == before


async def test_a_key_manager_that_might_open_it_and_is_down_is_an_outage_and_not_a_loss(
    world: World,
) -> None:
    sealed = await world.sealer.seal(b"half", CONTEXT)

    class Down:
        async def seal(self, private_key: bytes, context: SealContext) -> bytes:
            raise KmsError("AWS KMS does not answer.")

        async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
            raise KmsError("AWS KMS does not answer.")

    wrong = LocalSealer(bytes(32))
    with pytest.raises(KmsError):
        await AnySealer(wrong, Down()).unseal(sealed, CONTEXT)
    assert await AnySealer(Down(), world.sealer).unseal(sealed, CONTEXT) == b"half"
    with pytest.raises(SealError):
        await AnySealer(wrong, wrong).unseal(sealed, CONTEXT)
