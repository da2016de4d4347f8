"""The ring manager against a model of IVS: what it does, and what it does when things fail."""

from __future__ import annotations

import dataclasses

import jwt
import pytest
from structlog.testing import capture_logs

from tests.keyring.support import (
    DAY,
    NOW,
    OTHER_REGION,
    REGION,
    RING,
    World,
    arn,
    ivs_error,
    no_pause,
)
from tokensvc.errors import (
    IvsAccessDeniedError,
    IvsConflictError,
    IvsError,
    IvsPendingVerificationError,
    IvsQuotaExceededError,
    IvsThrottledError,
    IvsUnavailableError,
    KeyMismatchError,
    KmsError,
    NoSigningKeyError,
    NotFoundError,
    RingConflictError,
    StoreUnavailableError,
)
from tokensvc.keyring.record import DeleteReason, KeyPhase, key_tags
from tokensvc.keyring.sealing import LocalSealer, SealContext
from tokensvc.signing import generate_private_key, load_public_key, public_key_pem
from tokensvc.tokens.arn import PublicKeyArn


class SealerThatIsDown:
    """A key manager that does not answer until `down` is taken back."""

    def __init__(self, world: World) -> None:
        self.down = True
        self._sealer = world.sealer

    async def seal(self, private_key: bytes, context: SealContext) -> bytes:
        self._ask()
        return await self._sealer.seal(private_key, context)

    async def unseal(self, sealed: bytes, context: SealContext) -> bytes:
        self._ask()
        return await self._sealer.unseal(sealed, context)

    def _ask(self) -> None:
        if self.down:
            raise KmsError("AWS KMS does not answer.", retry_after=2.0)


async def test_the_first_prepare_makes_imports_checks_and_activates_a_key(world: World) -> None:
    key = await world.manager().prepare(REGION)
    assert key.phase is KeyPhase.ACTIVE
    imported = world.ivs.keys[key.arn or ""]
    assert imported.public_key_pem == key.public_key_pem
    assert imported.name == f"tokensvc-{RING}-{key.key_id}"
    assert imported.tags == key_tags(RING, world.ring().owner, key.key_id)
    assert key.checked_at == NOW


async def test_a_token_of_the_view_verifies_under_what_ivs_holds(world: World) -> None:
    """Promise 1: kid and key are one thing."""
    manager = world.manager()
    await manager.prepare(REGION)
    signing_key = (await manager.load_view()).signing_key(REGION)
    token = signing_key.mint({"sub": "x"})
    kid = jwt.get_unverified_header(token)["kid"]
    pem = world.ivs.keys[kid].public_key_pem
    assert jwt.decode(token, load_public_key(pem), algorithms=["ES384"]) == {"sub": "x"}


async def test_another_process_reuses_the_key(world: World) -> None:
    first = await world.manager().prepare(REGION)
    again = await world.manager().prepare(REGION)
    assert again == first
    assert len(world.ivs.keys) == 1


async def test_a_tick_prepares_a_standby_that_is_checked_ahead(world: World) -> None:
    """Promise 3: the switch needs no AWS call."""
    status = await world.manager().tick(REGION)
    assert world.phases() == {"ACTIVE": 1, "STANDBY": 1}
    assert world.standby.checked_at is not None
    assert status.healthy
    assert status.next_at == world.active.activated_at + world.policy.period
    assert status.next_step == "the next rotation is not due"


async def test_a_second_tick_has_nothing_to_do(world: World) -> None:
    manager = world.manager()
    await manager.tick(REGION)
    version, calls = world.ring().version, len(world.ivs.calls)
    status = await manager.tick(REGION)
    assert (status.steps, world.ring().version) == ((), version)
    assert world.ivs.calls[calls:] == ["ListPublicKeys"]


async def test_a_rotation_swaps_in_one_write_with_no_call_between(world: World) -> None:
    manager = await world.settled()
    old, new = world.active, world.standby
    calls = len(world.ivs.calls)
    world.clock.now += world.policy.period
    version = world.ring().version
    writes: list[tuple[str | None, int]] = []
    world.store.after = lambda _: writes.append((world.active.key_id, len(world.ivs.calls) - calls))
    status = await manager.tick(REGION)
    # One look, then the swap; whatever else IVS is asked comes after it.
    assert writes[0] == (new.key_id, 1)
    assert status.steps[0] == f"Rotate {old.key_id} to {new.key_id}"
    assert world.ring().version > version
    retired = world.ring().key(old.key_id)
    assert retired is not None
    assert retired.phase is KeyPhase.RETIRING
    assert retired.sealed_private_key is None
    assert world.phases() == {"ACTIVE": 1, "STANDBY": 1, "RETIRING": 1}


async def test_a_retired_key_stays_until_its_last_token_has_expired(world: World) -> None:
    """Promise 2."""
    manager = await world.settled()
    old = world.active
    await manager.rotate(REGION)
    world.ledger.marks[old.key_id] = world.clock.now + 5 * DAY
    skew = world.policy.skew
    for moment in (world.policy.settle, 4 * DAY, 5 * DAY, 5 * DAY + skew - 1):
        await _at(world, world.ring().key(old.key_id).retired_at + moment)
        await manager.tick(REGION)
        assert old.arn in world.ivs.keys
    await _at(world, world.ledger.marks[old.key_id] + skew)
    await manager.tick(REGION)
    assert old.arn not in world.ivs.keys
    deleted = world.ring().key(old.key_id)
    assert deleted is not None
    assert (deleted.phase, deleted.delete_reason) == (KeyPhase.DELETED, DeleteReason.DRAINED)


async def _at(world: World, moment: float) -> None:
    world.clock.now = moment


@pytest.mark.parametrize("deletes_twice", [True, False])
async def test_a_list_that_goes_on_showing_a_deleted_key_is_no_trouble(
    world: World, deletes_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether IVS's list is behind its deletions, and answers a second one, is not documented."""
    manager = await world.settled()
    delete = world.ivs.delete_public_key

    async def delete_and_show(region: str, arn: str) -> None:
        shown = [key for key in await world.ivs.list_public_keys(region) if key.arn == arn]
        if not (deletes_twice and arn in world.ivs.deleted):
            await delete(region, arn)
        world.ivs.lingering = shown

    monkeypatch.setattr(world.ivs, "delete_public_key", delete_and_show)
    old = world.active
    await manager.rotate(REGION)
    world.clock.now += world.policy.drain
    for _ in range(3):
        status = await manager.tick(REGION)
        assert status.problems == ()
    assert old.arn in world.ivs.deleted
    assert len([call for call in world.ivs.calls if call == "DeletePublicKey"]) <= 3
    world.ivs.lingering = []
    assert (await manager.tick(REGION)).healthy
    assert world.phases() == {"ACTIVE": 1, "STANDBY": 1, "DELETED": 1}


async def test_a_key_without_tokens_stays_until_no_replica_can_sign_with_it(world: World) -> None:
    manager = await world.settled()
    old = world.active
    await manager.rotate(REGION)
    world.clock.now += world.policy.settle - 1
    await manager.tick(REGION)
    assert old.arn in world.ivs.keys
    world.clock.now += 1
    await manager.tick(REGION)
    assert old.arn not in world.ivs.keys


async def test_without_a_ledger_a_key_stays_as_long_as_its_longest_token(world: World) -> None:
    world.policy = dataclasses.replace(world.policy, ledger_complete=False)
    manager = world.manager(drain=None)
    await manager.tick(REGION)
    world.clock.now += world.policy.standby_min_age
    old = world.active
    await manager.rotate(REGION)
    # The settings of the process that deletes do not shorten the life of what was signed before.
    world.policy = dataclasses.replace(world.policy, longest_participant_ttl=3600.0)
    later = world.manager(drain=None)
    world.clock.now += 14 * DAY
    await later.tick(REGION)
    assert old.arn in world.ivs.keys
    world.clock.now += world.policy.settle
    await later.tick(REGION)
    assert old.arn not in world.ivs.keys


async def test_a_ledger_that_does_not_answer_deletes_nothing(world: World) -> None:
    manager = await world.settled()
    old = world.active
    await manager.rotate(REGION)
    world.ledger.fails = StoreUnavailableError("The database does not answer.")
    world.clock.now += 100 * DAY
    status = await manager.tick(REGION)
    assert old.arn in world.ivs.keys
    assert [problem.code for problem in status.problems] == ["store_unavailable"]


async def test_a_clock_that_is_off_rotates_and_deletes_nothing(world: World) -> None:
    manager = await world.settled()
    old = world.active
    await manager.rotate(REGION)
    world.clock.now += 400 * DAY
    world.clock_off = 400 * DAY
    version = world.ring().version
    status = await manager.tick(REGION)
    assert old.arn in world.ivs.keys
    assert world.ring().version == version
    assert status.blocked
    assert "our clock and AWS's are 34560000 s apart" in status.next_step


async def test_a_rotation_that_is_asked_for_waits_for_the_standby(world: World) -> None:
    manager = world.manager()
    await manager.tick(REGION)
    before = world.active
    status = await manager.rotate(REGION)
    assert world.active == before
    assert status.next_at == world.standby.imported_at + world.policy.standby_min_age
    assert "old enough" in status.next_step
    world.clock.now = status.next_at
    await manager.rotate(REGION)
    assert world.active.key_id != before.key_id


async def test_rotating_to_a_key_that_is_no_standby_is_said(world: World) -> None:
    manager = await world.settled()
    with pytest.raises(NotFoundError, match="no STANDBY key kxyz"):
        await manager.rotate(REGION, to="kxyz")
    with pytest.raises(NotFoundError):
        await manager.rotate(REGION, to=world.active.key_id)


async def test_where_no_key_signs_a_rotation_makes_one_sign(world: World) -> None:
    manager = await world.settled()
    status = await manager.rotate(OTHER_REGION)
    assert status.healthy
    assert world.phases(OTHER_REGION) == {"ACTIVE": 1, "STANDBY": 1}


async def test_a_full_quota_is_an_error_in_the_log_and_a_spent_budget_a_warning(
    world: World,
) -> None:
    for _ in range(2):
        world.ivs.put(REGION, public_key_pem(generate_private_key()))
    with capture_logs() as logs:
        await world.manager().tick(REGION)
        world.ivs.fails("ListPublicKeys", ivs_error(IvsThrottledError), times=3)
        await world.manager().tick(REGION)
    told = [line for line in logs if line["event"] == "key_ring_needs_attention"]
    assert [line["log_level"] for line in told] == ["error", "warning"]
    assert "all 3 public keys" in told[0]["next_step"]


async def test_longer_tokens_are_allowed_only_once_that_is_stored(world: World) -> None:
    world.policy = dataclasses.replace(world.policy, longest_participant_ttl=3600.0)
    await world.settled()
    world.policy = dataclasses.replace(world.policy, longest_participant_ttl=2 * DAY)
    manager = world.manager()
    assert (await manager.load_view()).longest_ttl(REGION) == 3600.0
    await manager.tick(REGION)
    assert (await manager.load_view()).longest_ttl(REGION) == 2 * DAY


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflicts", [True, False])
async def test_an_import_whose_answer_was_lost_is_found_again(
    world: World, conflicts: bool
) -> None:
    """Promise 4, whether or not IVS refuses the same material twice, which is not documented."""
    world.ivs.same_material_conflicts = conflicts
    world.ivs.loses_answer("ImportPublicKey")
    manager = world.manager()
    with pytest.raises(IvsUnavailableError):
        await manager.prepare(REGION)
    key = await manager.prepare(REGION)
    assert [key.arn] == list(world.ivs.keys)


async def test_an_import_that_is_not_listed_yet_is_found_through_the_conflict(
    world: World,
) -> None:
    world.ivs.loses_answer("ImportPublicKey")
    manager = world.manager()
    with pytest.raises(IvsUnavailableError):
        await manager.prepare(REGION)
    world.ivs.hidden = set(world.ivs.keys)

    def appear(operation: str) -> None:
        if len(world.clock.naps) > 2:
            world.ivs.hidden.clear()

    world.ivs.before = appear
    key = await manager.prepare(REGION)
    assert [key.arn] == list(world.ivs.keys)


async def test_a_key_that_shows_up_late_is_waited_for(world: World) -> None:
    def hide(operation: str) -> None:
        world.ivs.hidden = set(world.ivs.keys) if len(world.clock.naps) < 3 else set()

    world.ivs.after = hide
    world.ivs.before = lambda operation: hide(operation) if operation == "GetPublicKey" else None
    key = await world.manager().prepare(REGION)
    assert key.phase is KeyPhase.ACTIVE
    assert world.clock.naps == [0.25, 0.5, 1.0]


async def test_a_second_import_of_one_key_is_swept(world: World) -> None:
    await world.settled()
    key = world.active
    twin = world.ivs.put(REGION, key.public_key_pem, key.name, world.ivs.keys[key.arn].tags)
    await world.manager().tick(REGION)
    assert twin.arn not in world.ivs.keys
    assert key.arn in world.ivs.keys


async def test_a_key_of_ours_that_the_store_forgot_lives_as_long_as_its_tokens_may(
    world: World,
) -> None:
    manager = await world.settled()
    tags = key_tags(RING, world.ring().owner, "klost")
    lost = world.ivs.put(REGION, public_key_pem(generate_private_key()), "lost", tags)
    await manager.tick(REGION)
    record = world.ring().key("klost")
    assert record is not None
    assert record.phase is KeyPhase.RETIRING
    world.clock.now += world.policy.drain - 1
    await manager.tick(REGION)
    assert lost.arn in world.ivs.keys
    world.clock.now += 1
    await manager.tick(REGION)
    assert lost.arn not in world.ivs.keys


@pytest.mark.parametrize("whose", ["nobody", "other ring", "other database"])
async def test_keys_of_other_owners_are_counted_and_never_touched(world: World, whose: str) -> None:
    manager = await world.settled()
    owner = world.ring().owner
    tags = {
        "nobody": {},
        "other ring": key_tags("other", owner, "k1"),
        "other database": key_tags(RING, "another", world.active.key_id),
    }[whose]
    other = world.ivs.put(REGION, public_key_pem(generate_private_key()), world.active.name, tags)
    status = await manager.tick(REGION)
    assert status.foreign_keys == (other.arn,)
    assert status.free_slots == 0
    world.clock.now += world.policy.period
    await manager.tick(REGION)
    world.clock.now += world.policy.period
    await manager.tick(REGION)
    assert other.arn in world.ivs.keys
    assert other.arn not in world.ivs.deleted


async def test_a_full_quota_names_who_takes_the_slots(world: World) -> None:
    others = [world.ivs.put(REGION, public_key_pem(generate_private_key())) for _ in range(3)]
    manager = world.manager()
    with pytest.raises(NoSigningKeyError, match="all 3 public keys of eu-central-1 are taken"):
        await manager.prepare(REGION)
    status = await manager.tick(REGION)
    assert status.blocked
    assert all(other.arn in status.next_step for other in others)
    assert world.phases() == {}
    world.ivs.drop(others[0].arn)
    assert (await manager.prepare(REGION)).phase is KeyPhase.ACTIVE


@pytest.mark.parametrize(
    "kind",
    [
        IvsAccessDeniedError,
        IvsConflictError,
        IvsPendingVerificationError,
        IvsQuotaExceededError,
        IvsThrottledError,
        IvsUnavailableError,
    ],
)
async def test_a_refused_import_is_a_problem_and_is_tried_again(
    world: World, kind: type[IvsError]
) -> None:
    await world.manager().prepare(REGION)
    manager = world.manager()
    world.ivs.fails("ImportPublicKey", ivs_error(kind), times=3)
    status = await manager.tick(REGION)
    world.ivs.before = lambda operation: None
    assert [(problem.code, problem.detail) for problem in status.problems] == [
        (kind.code, "said by the test")
    ]
    assert not status.healthy
    assert manager.status(REGION) == status
    assert world.active.phase is KeyPhase.ACTIVE
    assert (await manager.tick(REGION)).healthy
    assert world.phases() == {"ACTIVE": 1, "STANDBY": 1}


async def test_a_throttled_call_is_made_again_when_ivs_says(world: World) -> None:
    manager = world.manager()
    await manager.prepare(REGION)
    world.clock.naps.clear()
    throttled = IvsThrottledError("too many", retry_after=2.5)
    world.ivs.fails("ImportPublicKey", throttled, times=2)
    assert (await manager.tick(REGION)).healthy
    assert world.clock.naps == [2.5, 2.5]
    assert world.phases() == {"ACTIVE": 1, "STANDBY": 1}


async def test_a_step_that_fails_does_not_hold_up_the_others(world: World) -> None:
    """A delete that IVS refuses must not keep the next rotation from happening."""
    manager = await world.settled()
    first = world.active
    await manager.rotate(REGION)
    world.ivs.fails("DeletePublicKey", ivs_error(IvsAccessDeniedError), times=10)
    world.clock.now += world.policy.period + 1
    second = world.active
    status = await manager.tick(REGION)
    assert world.active.key_id != second.key_id
    assert first.arn in world.ivs.keys
    assert f"Delete {first.key_id}" in [problem.step for problem in status.problems]


async def test_the_same_trouble_is_logged_once(
    world: World,
) -> None:
    await world.manager().prepare(REGION)
    manager = world.manager()
    world.ivs.fails("ListPublicKeys", ivs_error(), times=3)
    with capture_logs() as logs:
        for _ in range(4):
            await manager.tick(REGION)
    assert [line["event"] for line in logs if line["event"].startswith("key_ring_")] == [
        "key_ring_needs_attention",
        "key_ring_healthy",
    ]


async def test_a_region_that_fails_leaves_the_others_alone(world: World) -> None:
    manager = world.manager()
    await manager.prepare(OTHER_REGION)
    world.ivs.fails("ListPublicKeys", ivs_error())
    assert not (await manager.tick(REGION)).healthy
    assert (await manager.tick(OTHER_REGION)).healthy
    assert (await manager.load_view()).regions == (OTHER_REGION,)


# --- keys deleted behind our back -----------------------------------------------------------------


async def test_an_active_key_deleted_in_the_console_is_replaced_at_once(world: World) -> None:
    manager = await world.settled()
    lost, standby = world.active, world.standby
    world.ivs.drop(lost.arn)
    status = await manager.tick(REGION)
    assert world.active.key_id == standby.key_id
    assert status.steps[0] == f"Forget {lost.key_id}"
    gone = world.ring().key(lost.key_id)
    assert gone is not None
    assert (gone.phase, gone.delete_reason) == (KeyPhase.DELETED, DeleteReason.GONE)
    assert gone.sealed_private_key is None
    assert world.phases()["STANDBY"] == 1


async def test_a_lost_key_does_not_sign_even_where_that_cannot_be_stored(world: World) -> None:
    manager = await world.settled()
    world.ivs.drop(world.active.arn)

    def fail(operation: str) -> None:
        if operation == "save":
            raise StoreUnavailableError("The disk that holds the database is full.")

    world.store.before = fail
    await manager.tick(REGION)
    view = await manager.load_view()
    with pytest.raises(NoSigningKeyError, match="IVS no longer holds"):
        view.signing_key(REGION)


async def test_a_lost_key_is_taken_out_though_the_key_manager_is_down(world: World) -> None:
    """Other processes go by what is stored; they must not sign with it until KMS is back."""
    await world.settled()
    lost, standby = world.active, world.standby
    world.ivs.drop(lost.arn)
    sealer = SealerThatIsDown(world)
    manager = world.manager(sealer=sealer)
    status = await manager.tick(REGION)
    assert world.ring().active is None
    assert world.ring().key(lost.key_id).delete_reason is DeleteReason.GONE
    assert [problem.code for problem in status.problems] == ["kms"]
    sealer.down = False
    await manager.tick(REGION)
    assert world.active.key_id == standby.key_id


async def test_a_lost_standby_is_replaced(world: World) -> None:
    manager = await world.settled()
    lost = world.standby
    world.ivs.drop(lost.arn)
    await manager.tick(REGION)
    assert world.standby.key_id != lost.key_id


async def test_a_key_that_is_only_not_listed_stays(world: World) -> None:
    manager = await world.settled()
    key = world.active
    listed = world.ivs.list_public_keys

    async def incomplete(region: str) -> object:
        return [found for found in await listed(region) if found.arn != key.arn]

    world.ivs.list_public_keys = incomplete  # type: ignore[assignment,method-assign]
    await manager.tick(REGION)
    assert world.active == key


async def test_another_account_is_not_taken_for_a_deletion(world: World) -> None:
    await world.settled()
    key = world.active
    world.ivs.keys.clear()
    world.ivs.account = "999999999999"
    world.ivs.put(REGION, public_key_pem(generate_private_key()))
    status = await world.manager().tick(REGION)
    assert world.active == key
    assert [problem.code for problem in status.problems] == ["key_mismatch"]
    assert "another AWS account" in status.problems[0].detail


async def test_no_key_of_another_account_joins_the_ring(world: World) -> None:
    """Credentials of another account, in which nothing is, while IVS says no more than "no such key"."""
    manager = await world.settled()
    keys = dict(world.ivs.keys)
    world.ivs.keys.clear()
    world.ivs.account = "999999999999"
    status = await manager.tick(REGION)
    assert [problem.code for problem in status.problems] == ["key_mismatch"]
    assert "another AWS account than the keys of this ring, 123456789012" in (
        status.problems[0].detail
    )
    with pytest.raises(NoSigningKeyError):
        (await manager.load_view()).signing_key(REGION)
    # With the right ones again it heals, and breaks no token that was signed before.
    world.ivs.account = "123456789012"
    world.ivs.keys = keys
    assert (await world.manager().tick(REGION)).problems == ()
    assert world.active.arn in world.ivs.keys
    assert keys.keys() <= world.ivs.keys.keys()


async def test_a_key_whose_material_changed_may_not_sign(world: World) -> None:
    manager = world.manager()
    key = await manager.prepare(REGION)
    world.ivs.drop(key.arn)
    changed = world.ivs.put(REGION, public_key_pem(generate_private_key()))
    world.ivs.keys[key.arn] = type(changed)(
        key.arn, key.name, changed.public_key_pem, "00", changed.tags
    )
    with pytest.raises(KeyMismatchError, match="holds another public key"):
        await manager.prepare(REGION)
    with pytest.raises(NoSigningKeyError, match="holds another public key"):
        (await manager.load_view()).signing_key(REGION)


async def test_a_lost_master_key_is_said_and_imports_nothing(world: World) -> None:
    await world.settled()
    manager = world.manager(sealer=LocalSealer(bytes(32)))
    view = await manager.load_view()
    with pytest.raises(NoSigningKeyError, match="sealed under another master key"):
        view.signing_key(REGION)
    keys = set(world.ivs.keys)
    world.clock.now += world.policy.period
    status = await manager.tick(REGION)
    assert {problem.code for problem in status.problems} == {"seal"}
    assert set(world.ivs.keys) == keys


async def test_a_lost_master_key_is_recovered_from_as_the_runbook_says(world: World) -> None:
    await world.settled()
    manager = world.manager(sealer=LocalSealer(bytes(32)))
    await manager.tick(REGION)
    old = world.active
    assert (await manager.invalidate(REGION, world.standby.key_id)).deleted
    await manager.tick(REGION)
    world.clock.now += world.policy.standby_min_age
    await manager.rotate(REGION)
    assert (await manager.load_view()).signing_key(REGION).key_id == world.active.key_id
    # Nothing of what was signed before breaks.
    assert old.arn in world.ivs.keys


# --- invalidation ---------------------------------------------------------------------------------


async def test_invalidating_the_active_key_promotes_the_standby(world: World) -> None:
    manager = await world.settled()
    bad, standby = world.active, world.standby
    report = await manager.invalidate(REGION, bad.key_id)
    assert (report.successor, report.deleted) == (standby.key_id, True)
    assert bad.arn not in world.ivs.keys
    assert world.active.key_id == standby.key_id
    dead = world.ring().key(bad.key_id)
    assert dead is not None
    assert (dead.phase, dead.delete_reason) == (KeyPhase.DELETED, DeleteReason.COMPROMISED)
    assert dead.sealed_private_key is None
    view = await manager.load_view()
    assert view.signing_key(REGION).key_id == standby.key_id


async def test_a_dry_run_only_reports(world: World) -> None:
    manager = await world.settled()
    before, ring = dict(world.ivs.keys), world.ring()
    report = await manager.invalidate(REGION, world.active.key_id, dry_run=True)
    assert (report.successor, report.deleted) == (world.standby.key_id, False)
    assert (world.ivs.keys, world.ring()) == (before, ring)


async def test_without_a_standby_nothing_signs_until_a_new_key_is_ready(world: World) -> None:
    manager = world.manager()
    bad = await manager.prepare(REGION)
    report = await manager.invalidate(REGION, bad.key_id)
    assert (report.successor, report.deleted) == (None, True)
    with pytest.raises(NoSigningKeyError):
        (await manager.load_view()).signing_key(REGION)
    await manager.tick(REGION)
    assert (await manager.load_view()).signing_key(REGION).key_id != bad.key_id


async def test_a_delete_that_fails_is_in_the_report_and_tried_again(world: World) -> None:
    manager = await world.settled()
    bad = world.active
    world.ivs.fails("DeletePublicKey", ivs_error(IvsUnavailableError))
    report = await manager.invalidate(REGION, bad.key_id)
    assert not report.deleted
    assert report.problem is not None
    assert report.problem.code == "ivs_unavailable"
    # It signs no more all the same.
    assert (await manager.load_view()).signing_key(REGION).key_id != bad.key_id
    await world.manager().tick(REGION)
    assert bad.arn not in world.ivs.keys


async def test_a_delete_whose_answer_was_lost_ends_deleted(world: World) -> None:
    manager = await world.settled()
    bad = world.active
    world.ivs.loses_answer("DeletePublicKey")
    assert not (await manager.invalidate(REGION, bad.key_id)).deleted
    await manager.tick(REGION)
    assert world.ring().key(bad.key_id).phase is KeyPhase.DELETED


@pytest.mark.parametrize("phase", ["STANDBY", "RETIRING", "GENERATED"])
async def test_a_key_of_any_phase_can_be_invalidated(world: World, phase: str) -> None:
    manager = await world.settled()
    if phase == "RETIRING":
        await manager.rotate(REGION)
    if phase == "GENERATED":
        world.ivs.drop(world.standby.arn)
        world.ivs.fails("ImportPublicKey", ivs_error(), times=9)
        await manager.tick(REGION)
        world.ivs.before = lambda operation: None
    key = world.ring().in_phase(KeyPhase(phase))[0]
    active = world.active
    report = await manager.invalidate(REGION, key.key_id)
    assert report.deleted
    assert world.active == active
    assert key.arn not in world.ivs.keys
    assert await manager.invalidate(REGION, key.key_id) == await manager.invalidate(
        REGION, key.key_id, dry_run=False
    )


async def test_a_ledger_that_does_not_answer_keeps_no_stolen_key_alive(world: World) -> None:
    manager = await world.settled()
    bad, standby = world.active, world.standby
    world.ledger.fails = StoreUnavailableError("The database took too long for a statement.")
    report = await manager.invalidate(REGION, bad.key_id)
    assert (report.successor, report.deleted) == (standby.key_id, True)
    assert bad.arn not in world.ivs.keys


async def test_a_key_manager_that_is_down_keeps_no_stolen_key_alive(world: World) -> None:
    """The standby is the next tick's to promote, of whoever has it open or when KMS is back."""
    await world.settled()
    bad, standby = world.active, world.standby
    sealer = SealerThatIsDown(world)
    report = await world.manager(sealer=sealer).invalidate(REGION, bad.key_id)
    assert (report.successor, report.deleted) == (None, True)
    assert bad.arn not in world.ivs.keys
    assert world.phases() == {"STANDBY": 1, "DELETED": 1}
    sealer.down = False
    await world.manager(sealer=sealer).tick(REGION)
    assert world.active.key_id == standby.key_id


async def test_an_unknown_key_cannot_be_invalidated(world: World) -> None:
    manager = await world.settled()
    with pytest.raises(NotFoundError, match="no key kxyz"):
        await manager.invalidate(REGION, "kxyz")
    with pytest.raises(NotFoundError):
        await manager.invalidate(OTHER_REGION, world.active.key_id)


async def test_an_invalidated_key_that_ivs_shows_again_is_swept(world: World) -> None:
    manager = await world.settled()
    bad = world.active
    held = world.ivs.keys[bad.arn]
    await manager.invalidate(REGION, bad.key_id)
    world.ivs.keys[bad.arn] = held
    await manager.tick(REGION)
    assert bad.arn not in world.ivs.keys


def test_a_ledger_that_is_promised_must_be_there(world: World) -> None:
    with pytest.raises(ValueError, match="ledger"):
        world.manager(drain=None)


def test_arns_of_the_model_are_arns() -> None:
    assert PublicKeyArn.parse(arn("n0001")).region == REGION


async def test_an_active_key_that_fails_its_self_check_is_replaced(world: World) -> None:
    manager = await world.settled()
    bad, standby = world.active, world.standby
    held = world.ivs.keys[bad.arn]
    world.ivs.keys[bad.arn] = dataclasses.replace(
        held, public_key_pem=public_key_pem(generate_private_key())
    )
    world.clock.now += 900
    status = await manager.tick(REGION)
    assert world.active.key_id == standby.key_id
    assert [problem.code for problem in status.problems] == ["key_mismatch"]
    assert (await manager.load_view()).signing_key(REGION).key_id == standby.key_id


async def test_a_key_that_was_given_up_and_is_back_is_not_swept_under_its_tokens(
    world: World,
) -> None:
    manager = await world.settled()
    lost = world.active
    held = world.ivs.keys.pop(lost.arn or "")
    await manager.tick(REGION)
    assert world.ring().key(lost.key_id).delete_reason is DeleteReason.GONE
    world.ivs.keys[held.arn] = held
    await manager.tick(REGION)
    assert held.arn in world.ivs.keys, "its living tokens join again"
    world.clock.now += world.policy.drain
    world.clock_off = 3600.0
    await manager.tick(REGION)
    assert held.arn in world.ivs.keys
    world.clock_off = 0.0
    await manager.tick(REGION)
    assert held.arn not in world.ivs.keys


async def test_another_key_under_our_name_and_tags_is_not_taken_for_ours(world: World) -> None:
    world.ivs.fails("ImportPublicKey", ivs_error())
    manager = world.manager()
    await manager.tick(REGION)
    (key,) = world.ring().in_phase(KeyPhase.GENERATED)
    tags = key_tags(RING, world.ring().owner, key.key_id)
    world.ivs.put(REGION, public_key_pem(generate_private_key()), key.name, tags)
    status = await manager.tick(REGION)
    assert [problem.code for problem in status.problems] == ["key_mismatch"]
    assert "another public key under the name" in status.problems[0].detail
    assert world.phases() == {"GENERATED": 1}


async def test_a_key_is_not_noted_as_deleted_by_another_account_that_never_had_it(
    world: World,
) -> None:
    await world.settled()
    key = world.active
    world.ivs.keys.clear()
    world.ivs.account = "999999999999"
    world.ivs.put(REGION, public_key_pem(generate_private_key()))
    report = await world.manager().invalidate(REGION, key.key_id)
    assert (report.deleted, report.problem.code) == (False, "key_mismatch")
    assert world.ring().key(key.key_id).phase is KeyPhase.RETIRING


async def test_an_invalidation_that_meets_another_change_is_done_on_the_ring_as_it_is_then(
    world: World,
) -> None:
    manager = await world.settled()
    key = world.active
    left = 2

    def conflict(operation: str) -> None:
        nonlocal left
        if operation == "save" and left:
            left -= 1
            raise RingConflictError("changed since")

    world.store.before = conflict
    assert (await manager.invalidate(REGION, key.key_id)).deleted
    assert world.active.key_id != key.key_id
    left = 100
    with pytest.raises(RingConflictError, match="keeps being changed"):
        await manager.invalidate(REGION, world.active.key_id)


async def test_a_key_that_another_rotator_deletes_first_is_deleted(world: World) -> None:
    """A server ticks between the two writes of a command; the command must not cry wolf."""
    await world.settled()
    bad, server, ticks = world.active, world.manager(), 0

    async def server_ticks() -> None:
        nonlocal ticks
        world.ivs.pause = no_pause
        ticks += 1
        await server.tick(REGION)

    world.ivs.pause = server_ticks
    report = await world.manager().invalidate(REGION, bad.key_id)
    assert ticks == 1
    assert (report.deleted, report.problem) == (True, None)
    assert world.ring().key(bad.key_id).phase is KeyPhase.DELETED


async def test_a_half_that_does_not_open_is_not_imported(world: World) -> None:
    world.ivs.fails("ImportPublicKey", ivs_error())
    await world.manager().tick(REGION)
    status = await world.manager(sealer=LocalSealer(bytes(32))).tick(REGION)
    assert [problem.code for problem in status.problems] == ["seal"]
    assert world.ivs.keys == {}


@pytest.mark.parametrize("fault", [StoreUnavailableError("down"), RingConflictError("changed")])
async def test_a_key_that_was_missed_for_a_moment_signs_again(world: World, fault) -> None:
    """Though the store failed in the same look, so that nobody else was told."""
    manager = await world.settled()
    key = world.active
    world.clock.now += 600
    world.ivs.hidden.add(key.arn)

    def fail(operation: str) -> None:
        if operation == "save":
            world.ivs.hidden.clear()
            world.store.before = lambda _: None
            raise fault

    world.store.before = fail
    await manager.tick(REGION)
    for _ in range(2):
        world.clock.now += 1000
        await manager.tick(REGION)
    assert world.active.key_id == key.key_id
    assert dict((await manager.load_view()).reasons) == {}


async def test_an_orphan_is_kept_as_long_as_any_token_of_the_ring_was_ever_allowed(
    world: World,
) -> None:
    await world.settled()
    longest = world.active.longest_ttl
    tags = key_tags(RING, world.ring().owner, "klost")
    world.ivs.put(REGION, public_key_pem(generate_private_key()), "lost", tags)
    shorter = dataclasses.replace(world.policy, longest_participant_ttl=3600)
    assert shorter.longest_ttl < longest
    await world.manager(policy=shorter).tick(REGION)
    assert world.ring().key("klost").longest_ttl == longest
