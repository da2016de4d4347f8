"""What must never happen to a key cannot be expressed, or raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.keyring.support import NOW, POLICY, REGION, RING, arn
from tokensvc.keyring import phases
from tokensvc.keyring.drain import delete_at, drained
from tokensvc.keyring.phases import Drained
from tokensvc.keyring.record import (
    DeleteReason,
    IllegalKeyStateError,
    KeyPhase,
    KeyRecord,
    RingState,
    check_ring_id,
    key_name,
    key_tags,
    tagged_key_id,
)

GENERATED = KeyRecord(
    key_id="k1",
    region=REGION,
    phase=KeyPhase.GENERATED,
    name="n",
    public_key_pem="PEM",
    sealed_private_key=b"sealed",
    created_at=NOW,
)
STANDBY = phases.stand_by(GENERATED, arn=arn("k1"), now=NOW)
CHECKED = phases.checked(STANDBY, now=NOW)
ACTIVE = phases.activate(CHECKED, longest_ttl=600.0, now=NOW)
RETIRING = phases.retire(ACTIVE, now=NOW)
CONDEMNED = phases.condemn(RETIRING, Drained("k1", NOW), now=NOW)
DELETED = phases.delete(CONDEMNED, now=NOW)
ALL = {
    "GENERATED": GENERATED,
    "STANDBY": STANDBY,
    "CHECKED": CHECKED,
    "ACTIVE": ACTIVE,
    "RETIRING": RETIRING,
    "CONDEMNED": CONDEMNED,
    "DELETED": DELETED,
}

TRANSITIONS: dict[str, tuple[Callable[[KeyRecord], KeyRecord], set[str]]] = {
    "stand_by": (lambda key: phases.stand_by(key, arn=arn("x"), now=NOW), {"GENERATED"}),
    "checked": (lambda key: phases.checked(key, now=NOW), {"STANDBY", "CHECKED"}),
    "activate": (lambda key: phases.activate(key, longest_ttl=1.0, now=NOW), {"CHECKED"}),
    "extend": (lambda key: phases.extend(key, longest_ttl=601.0), {"ACTIVE"}),
    "retire": (lambda key: phases.retire(key, now=NOW), {"ACTIVE"}),
    "condemn": (lambda key: phases.condemn(key, Drained("k1", NOW), now=NOW), {"RETIRING"}),
    "delete": (lambda key: phases.delete(key, now=NOW), {"CONDEMNED"}),
    "invalidate": (lambda key: phases.invalidate(key, now=NOW), set(ALL) - {"DELETED"}),
    "gone": (lambda key: phases.gone(key, now=NOW), set(ALL) - {"GENERATED", "DELETED"}),
}


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.parametrize("phase", ALL)
def test_only_the_ways_that_are_drawn_exist(name: str, phase: str) -> None:
    go, allowed = TRANSITIONS[name]
    if phase in allowed:
        go(ALL[phase])
    else:
        with pytest.raises(IllegalKeyStateError, match="key k1"):
            go(ALL[phase])


def test_a_key_of_which_a_token_lives_cannot_be_condemned() -> None:
    """Promise 2."""
    with pytest.raises(IllegalKeyStateError, match="not drained"):
        phases.condemn(RETIRING, Drained("k1", NOW + 0.001), now=NOW)
    with pytest.raises(IllegalKeyStateError, match="not drained"):
        phases.condemn(RETIRING, Drained("k2", NOW), now=NOW)


def test_no_key_is_deleted_that_was_not_condemned() -> None:
    with pytest.raises(IllegalKeyStateError, match="not to be deleted"):
        phases.delete(RETIRING, now=NOW + 1e9)


def test_a_check_before_the_import_is_none() -> None:
    with pytest.raises(IllegalKeyStateError, match="before its import"):
        phases.checked(STANDBY, now=NOW - 1)


def test_only_a_key_that_may_sign_has_a_private_half() -> None:
    """Promise 8: what must not be used again is not there."""
    holders = {name for name, key in ALL.items() if key.sealed_private_key is not None}
    assert holders == {"GENERATED", "STANDBY", "CHECKED", "ACTIVE"}
    for key in (phases.invalidate(ACTIVE, now=NOW), phases.gone(ACTIVE, now=NOW)):
        assert key.sealed_private_key is None
    assert "sealed" not in repr(ACTIVE)


@pytest.mark.parametrize(
    "change",
    [
        {"arn": None},
        {"imported_at": None},
        {"checked_at": None},
        {"activated_at": None},
        {"longest_ttl": None},
        {"sealed_private_key": None},
        {"delete_reason": DeleteReason.DRAINED},
        {"arn": arn("k1", "us-east-1")},
        {"arn": "arn:aws:ivs:eu-central-1:1:stage/x"},
        {"phase": KeyPhase.GENERATED},
        {"phase": KeyPhase.RETIRING},
        {"phase": KeyPhase.DELETED},
    ],
)
def test_an_active_record_that_contradicts_itself_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(IllegalKeyStateError):
        dataclasses.replace(ACTIVE, **change)


@pytest.mark.parametrize("change", [{"retired_at": None}, {"sealed_private_key": b"x"}])
def test_a_retiring_record_that_contradicts_itself_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(IllegalKeyStateError):
        dataclasses.replace(RETIRING, **change)


@pytest.mark.parametrize("change", [{"delete_reason": None}, {"deleted_at": None}])
def test_a_deleted_record_says_when_and_why(change: dict[str, Any]) -> None:
    with pytest.raises(IllegalKeyStateError):
        dataclasses.replace(DELETED, **change)


def test_a_ring_has_one_active_key_and_no_key_or_arn_twice() -> None:
    other = dataclasses.replace(ACTIVE, key_id="k2", arn=arn("k2"))
    for keys in (
        (ACTIVE, other),
        (ACTIVE, ACTIVE),
        (dataclasses.replace(STANDBY, key_id="k2"), ACTIVE),
    ):
        with pytest.raises(IllegalKeyStateError):
            RingState(REGION, 1, keys)
    with pytest.raises(IllegalKeyStateError, match="another Region"):
        RingState("us-east-1", 1, (GENERATED,))


def test_no_key_vanishes_and_no_ring_is_emptied() -> None:
    ring = RingState(REGION, 4, (ACTIVE, dataclasses.replace(DELETED, key_id="k0", arn=arn("k0"))))
    assert ring.successor((ACTIVE,)).version == 5
    for keys in ((ring.keys[1],), ()):
        with pytest.raises(IllegalKeyStateError, match="vanish"):
            ring.successor(keys)
    with pytest.raises(IllegalKeyStateError, match="vanish"):
        RingState(REGION, 4, (DELETED,)).successor(())


@pytest.mark.parametrize("ring_id", ["", "a_b", "a" * 65, "ring\n", "é", "a b"])
def test_a_ring_id_that_could_be_another_rings_name_is_refused(ring_id: str) -> None:
    with pytest.raises(ValueError, match="ring id"):
        check_ring_id(ring_id)


def test_the_longest_name_is_one_that_ivs_takes() -> None:
    assert len(key_name(check_ring_id("a" * 64), "k" * 32)) <= 128


def test_tags_are_a_rings_only_with_ring_owner_and_key() -> None:
    tags = key_tags(RING, "owner", "k1")
    assert tagged_key_id(RING, "owner", tags) == "k1"
    assert tagged_key_id("other", "owner", tags) is None
    assert tagged_key_id(RING, "another", tags) is None
    # A ring that was never stored owns nothing.
    assert tagged_key_id(RING, "", key_tags(RING, "", "k1")) is None
    assert tagged_key_id(RING, "owner", tags | {"tokensvc:key": "K 1"}) is None
    for tag in tags:
        assert tagged_key_id(RING, "owner", {k: v for k, v in tags.items() if k != tag}) is None


@given(
    expiry=st.none() | st.floats(NOW, NOW + 1e7),
    now=st.floats(NOW, NOW + 2e7),
)
def test_evidence_is_given_only_after_the_last_expiry_and_the_settling(
    expiry: float | None, now: float
) -> None:
    evidence = drained(RETIRING, expiry, POLICY, now)
    assert RETIRING.retired_at is not None
    earliest = max(RETIRING.retired_at + POLICY.settle, (expiry or 0.0) + POLICY.skew)
    assert (evidence is not None) is (now >= earliest)


@given(
    off=st.tuples(*[st.floats(-POLICY.skew, POLICY.skew)] * 2),
    later=st.floats(0, POLICY.view_max_age + 60.0, exclude_max=True),
)
def test_nobody_deletes_a_key_whose_last_token_may_still_be_recorded(
    off: tuple[float, float], later: float
) -> None:
    """The process that retires a key and the one that deletes it are off by the skew, either way."""
    retired = dataclasses.replace(RETIRING, retired_at=NOW + off[0])
    assert drained(retired, None, POLICY, NOW + later + off[1]) is None


def test_only_retiring_keys_have_a_time_of_deletion() -> None:
    assert all(delete_at(key, None, POLICY) is None for key in (STANDBY, ACTIVE, DELETED))


def test_a_key_that_never_signed_and_one_whose_ledger_is_lost_differ() -> None:
    orphan = phases.adopt_orphan(
        key_id="k1",
        region=REGION,
        arn=arn("k1"),
        name="n",
        public_key_pem="PEM",
        longest_ttl=600.0,
        now=NOW,
    )
    assert delete_at(orphan, None, POLICY) == NOW + POLICY.settle + 600.0
    assert delete_at(RETIRING, None, POLICY) == NOW + POLICY.settle
