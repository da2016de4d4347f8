"""The rotator's decisions, as values: what may follow from any ring and any facts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.keyring.support import DAY, NOW, POLICY, REGION, arn
from tokensvc.keyring import phases
from tokensvc.keyring.holdings import Holdings, Orphan
from tokensvc.keyring.phases import Drained
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState
from tokensvc.keyring.rotator import (
    Condemn,
    Delete,
    Facts,
    Forget,
    Generate,
    Import,
    Promote,
    Rotate,
    RotateNow,
    Sweep,
    Wait,
    plan,
)


def generated(key_id: str, at: float = NOW) -> KeyRecord:
    return KeyRecord(
        key_id=key_id,
        region=REGION,
        phase=KeyPhase.GENERATED,
        name=key_id,
        public_key_pem="PEM",
        sealed_private_key=b"sealed",
        created_at=at,
    )


def unchecked(key_id: str, at: float = NOW) -> KeyRecord:
    return phases.stand_by(generated(key_id, at), arn=arn(key_id), now=at)


def standby(key_id: str, at: float = NOW) -> KeyRecord:
    return phases.checked(unchecked(key_id, at), now=at)


def active(key_id: str, at: float = NOW) -> KeyRecord:
    return phases.activate(standby(key_id, at), longest_ttl=POLICY.longest_ttl, now=at)


def retiring(key_id: str, at: float = NOW) -> KeyRecord:
    return phases.retire(active(key_id, at), now=at)


def condemned(key_id: str, at: float = NOW) -> KeyRecord:
    return phases.condemn(retiring(key_id, at), Drained(key_id, at), now=at)


def holdings(
    *keys: KeyRecord, strays: tuple[str, ...] = (), foreign: tuple[str, ...] = ()
) -> Holdings:
    arns = {key.arn for key in keys if key.arn is not None}
    return Holdings(frozenset({*arns, *strays, *foreign}), frozenset(), strays, (), foreign)


def ring(*keys: KeyRecord) -> RingState:
    return RingState(REGION, 1, keys, "owner")


def test_an_empty_ring_gets_a_key() -> None:
    assert plan(ring(), POLICY, Facts(holdings()), NOW)[0] == Generate(REGION)


def test_a_ring_at_rest_waits_for_its_rotation() -> None:
    keys = (active("a"), standby("s"))
    assert plan(ring(*keys), POLICY, Facts(holdings(*keys)), NOW) == (
        Wait(NOW + POLICY.period, "the next rotation is not due"),
    )


@pytest.mark.parametrize(
    ("late", "rotates"), [(-1.0, False), (0.0, True), (5.0, True), (1e8, True)]
)
def test_a_rotation_happens_when_it_is_due_and_not_before(late: float, rotates: bool) -> None:
    keys = (active("a"), standby("s"))
    steps = plan(ring(*keys), POLICY, Facts(holdings(*keys)), NOW + POLICY.period + late)
    assert (Rotate(*keys) in steps) is rotates


def test_a_standby_that_ivs_does_not_list_is_not_promoted() -> None:
    keys = (active("a"), standby("s"))
    steps = plan(ring(*keys), POLICY, Facts(holdings(keys[0])), NOW + POLICY.period)
    assert not any(isinstance(step, Rotate) for step in steps)
    assert steps[-1] == Wait(
        None, "a rotation is due and no STANDBY key is fit for it", blocked=True
    )


def test_a_wish_is_for_the_key_that_was_meant_and_no_other() -> None:
    keys = (active("a"), standby("s"))
    now = NOW + POLICY.standby_min_age
    facts = Facts(holdings(*keys))
    assert Rotate(*keys) in plan(ring(*keys), POLICY, facts, now, RotateNow("a"))
    assert Rotate(*keys) not in plan(ring(*keys), POLICY, facts, now, RotateNow("b"))
    assert Rotate(*keys) not in plan(ring(*keys), POLICY, facts, now, RotateNow("a", to="x"))


def test_where_no_key_signs_the_wish_says_which_does_and_any_is_better_than_none() -> None:
    keys = (standby("s"), standby("t"))
    facts = Facts(holdings(*keys))
    for to, signs in ((None, keys[0]), ("t", keys[1]), ("x", keys[0])):
        assert plan(ring(*keys), POLICY, facts, NOW, RotateNow(None, to))[0] == Promote(signs)


def test_what_must_not_sign_goes_before_all_else() -> None:
    keys = (active("a"), standby("s"), condemned("c"))
    facts = Facts(holdings(keys[1], keys[2], strays=(arn("x"),)), gone=frozenset({"a"}))
    steps = plan(ring(*keys), POLICY, facts, NOW + DAY)
    assert steps[:3] == (Forget(keys[0], keys[1]), Delete(keys[2]), Sweep(arn("x")))


def test_a_full_region_says_who_fills_it() -> None:
    foreign = (arn("f1"), arn("f2"))
    keys = (active("a"),)
    last = plan(ring(*keys), POLICY, Facts(holdings(*keys, foreign=foreign)), NOW)[-1]
    assert isinstance(last, Wait)
    assert last.blocked
    assert f"2 of them by others ({arn('f1')}, {arn('f2')})" in last.reason


def test_a_region_full_of_what_is_to_be_deleted_blames_nobody_else() -> None:
    keys = (active("a"),)
    last = plan(ring(*keys), POLICY, Facts(holdings(*keys, strays=(arn("x"), arn("y")))), NOW)[-1]
    assert isinstance(last, Wait)
    assert last.reason.endswith("are taken, by this ring")


def test_own_keys_that_fill_the_slots_are_no_alarm() -> None:
    keys = (active("a"), retiring("r1"), retiring("r2"))
    facts = Facts(holdings(*keys), latest_expiry={"r1": NOW + DAY, "r2": NOW + 2 * DAY})
    (last,) = plan(ring(*keys), POLICY, facts, NOW)
    assert last == Wait(
        NOW + DAY + POLICY.skew, "the next standby waits for a RETIRING key to be drained"
    )


MAKERS = st.sampled_from([generated, unchecked, standby, active, retiring, condemned])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_plan_breaks_a_promise(data: st.DataObject) -> None:
    made = data.draw(st.lists(MAKERS, max_size=4))
    ages = st.floats(0, 3 * POLICY.period)
    keys: list[KeyRecord] = []
    for number, make in enumerate(made):
        if make is active and any(key.phase is KeyPhase.ACTIVE for key in keys):
            continue
        keys.append(make(f"k{number}", NOW - data.draw(ages)))
    ids = [key.key_id for key in keys]
    subset = st.frozensets(st.sampled_from(ids)) if ids else st.just(frozenset())
    listed = [key for key in keys if key.arn is not None and data.draw(st.booleans())]
    marks = {
        key.key_id: data.draw(st.none() | st.floats(NOW - DAY, NOW + DAY))
        for key in keys
        if key.phase is KeyPhase.RETIRING and data.draw(st.booleans())
    }
    facts = Facts(
        dataclasses.replace(
            holdings(*listed),
            orphans=(Orphan("o", arn("o"), "o"),) if data.draw(st.booleans()) else (),
        ),
        gone=data.draw(subset),
        latest_expiry=marks,
        clock_off=data.draw(st.sampled_from([0.0, 59.0, 61.0])),
        unfit=data.draw(subset),
    )
    wish = RotateNow(data.draw(st.sampled_from(ids))) if ids and data.draw(st.booleans()) else None
    *steps, last = plan(ring(*keys), POLICY, facts, NOW, wish)
    assert isinstance(last, Wait)
    assert last.until is None or last.until > NOW
    for step in steps:
        match step:
            case Condemn(key, evidence):
                assert facts.clock_off <= POLICY.skew
                assert evidence.since <= NOW
                assert (marks[key.key_id] or 0.0) + POLICY.skew <= NOW
            case Delete(key):
                assert key.delete_reason is not None
            case Rotate(old, new):
                assert old.phase is KeyPhase.ACTIVE
                assert new.checked_at is not None
                assert new.key_id not in facts.gone
            case Promote(key):
                assert key.checked_at is not None
                assert ring(*keys).active is None
            case Import() | Generate():
                assert facts.holdings.free_slots > 0
            case Wait():
                raise AssertionError("only the last step is a wait")
