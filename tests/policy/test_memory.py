"""A policy that has decided before decides as one that has not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.policy.support import policy, stage, wanted
from tokensvc.policy import Policy, memory
from tokensvc.tokens.claims import WantedToken

CALLERS = ("lobby", "plain", "strict", "nobody")

asked = st.builds(
    WantedToken,
    stage=st.builds(
        stage,
        st.sampled_from(["lobby-1", "lobby-2", "hall"]),
        st.sampled_from(["eu-central-1", "us-east-1"]),
    ),
    user_id=st.sampled_from([None, "", "ana"]),
    role=st.sampled_from([None, "host", "viewer", "king"]),
    duration=st.sampled_from([None, 1, 10, 60, 240, 1000]),
    capabilities=st.sampled_from([None, (), ("SUBSCRIBE",), ("PUBLISH", "SUBSCRIBE")]),
    attributes=st.sampled_from(
        [
            None,
            {},
            {"team": "red"},
            {"team": "blue", "x.a": "1"},
            {"team": "red", "x.secret": "1"},
            {"team": "red", "kind": "guest"},
            {"team": "\u00fc" * 600},
            {"y": "1"},
        ]
    ),
    issuer=st.sampled_from([None, "auto", "local", "ivs"]),
)


@given(st.lists(st.tuples(st.sampled_from(CALLERS), asked), max_size=30))
def test_what_was_decided_before_changes_nothing(questions: list[tuple[str, WantedToken]]):
    seasoned = policy()
    for caller, one in questions:
        fresh = policy_of_its_own()
        assert seasoned.decide(caller, one) == fresh.decide(caller, one)
        assert seasoned.decide(caller, one) == fresh.decide(caller, one, findings=[])
        assert seasoned.needs_tags(caller, one.stage) == fresh.needs_tags(caller, one.stage)


def policy_of_its_own() -> Policy:
    """Return the policy with nothing remembered, read once."""
    return Policy(_RULES, 20_160)


_RULES = policy()._rules


def test_a_second_request_for_the_same_is_not_decided_anew(monkeypatch: pytest.MonkeyPatch):
    sut = policy()
    first = sut.decide("plain", wanted(user_id="ana"))

    def unexpected(*_: object) -> None:
        raise AssertionError("decided anew")

    monkeypatch.setattr(memory, "check_granted", unexpected)
    second = sut.decide("plain", wanted(user_id="eva"))
    assert first.allowed
    assert second.rule == first.rule
    assert second.request == replace(first.require(), user_id="eva")
    with pytest.raises(AssertionError, match="anew"):
        sut.decide("plain", wanted(duration=3))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_MOST", 10)
    sut = policy()
    for number in range(100):
        assert sut.decide("plain", wanted(f"lobby-{number}")).allowed
        assert not sut.needs_tags("plain", stage(f"lobby-{number}"))
    known = sut.known("plain")
    assert known is not None
    assert 0 < len(known._grants) <= 10
    assert 0 < len(known._tagged) <= 10


@given(st.sampled_from(CALLERS), st.lists(asked, max_size=8), st.lists(asked, max_size=8))
def test_what_many_get_at_once_each_gets_alone(
    caller: str, before: list[WantedToken], items: list[WantedToken]
):
    seasoned = policy()
    for one in before + items:
        seasoned.decide(caller, one)
    known = seasoned.known(caller)
    if known is None:
        return
    at_once = known.allow_again(items)
    alone = [policy_of_its_own().decide(caller, one) for one in items]
    if at_once is not None:
        assert at_once == [decision.request for decision in alone]
    # Where attributes are not unusual and nothing is refused, no other question is asked.
    elif all(decision.allowed for decision in alone):
        assert any("kind" in (one.attributes or {}) for one in items)


def test_many_with_many_attributes_are_looked_at_one_by_one():
    known = policy().known("lobby")
    assert known is not None
    few = wanted(user_id="ana", attributes={"team": "red"})
    many = wanted(user_id="ana", attributes={"team": "red", **{f"x.{n}": "" for n in range(20)}})
    known.allow(few)
    assert known.allow_again([few, few]) == [known.allow(few)] * 2
    assert known.allow_again([few, many]) is None
    assert known.allow(many).attributes == many.attributes
