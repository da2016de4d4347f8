"""Promise: a caller gets what its rules allow and nothing else; a refusal names field, limit and rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.support import POLICY, for_lobby, policy, stage, wanted
from tokensvc.errors import PolicyDeniedError
from tokensvc.policy import Finding, Policy
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.limits import CAPABILITIES

SUT = policy()


def test_a_role_brings_capabilities_duration_and_attributes() -> None:
    decision = SUT.decide("lobby", for_lobby(role="host"))
    assert decision.require() == TokenRequest(
        stage(),
        "ana",
        240,
        ("PUBLISH", "SUBSCRIBE"),
        {"team": "red", "kind": "host"},
        "local",
    )
    assert str(decision.rule) == "callers.lobby.stages[0] (line 14)"


def test_the_default_role_stands_where_none_is_asked_for() -> None:
    request = SUT.decide("lobby", for_lobby()).require()
    assert (request.capabilities, request.duration) == (("SUBSCRIBE",), 60)


def test_less_than_the_role_may_be_asked_for() -> None:
    asked = for_lobby(role="host", duration=5, capabilities=("SUBSCRIBE",), issuer="ivs")
    request = SUT.decide("lobby", asked).require()
    assert (request.duration, request.capabilities, request.issuer) == (5, ("SUBSCRIBE",), "ivs")


def test_without_roles_the_callers_own_rule_fills_in() -> None:
    request = SUT.decide("plain", wanted("any", "us-west-2")).require()
    assert (request.duration, request.capabilities) == (10, ("SUBSCRIBE",))
    assert (request.issuer, request.attributes) == ("auto", {})


@pytest.mark.parametrize(
    ("caller", "request_", "field", "code", "limit", "rule"),
    [
        ("lobby", for_lobby("hall-1"), "stageArn", "stage_not_allowed", None, "stages (line 13)"),
        ("lobby", for_lobby(role="boss"), "role", "role_not_allowed", "host, viewer", "line 17"),
        ("lobby", for_lobby(user_id=None), "userId", "required", None, "limits (line 21)"),
        ("lobby", for_lobby(duration=61), "duration", "too_large", 60, "viewer.duration (line 10)"),
        ("lobby", for_lobby(role="host", duration=4), "duration", "too_small", 5, "(line 6)"),
        (
            "lobby",
            for_lobby(capabilities=("PUBLISH",)),
            "capabilities",
            "capability_not_allowed",
            "SUBSCRIBE",
            "roles.viewer (line 8)",
        ),
        ("lobby", for_lobby(issuer="auto"), "issuer", "issuer_not_allowed", "local, ivs", "line 20"),
        ("lobby", for_lobby(attributes={}), "attributes.team", "required", None, "line 19"),
        (
            "lobby",
            for_lobby(attributes={"team": "a", "x.secret": "b"}),
            "attributes.x.secret",
            "forbidden",
            None,
            "line 19",
        ),
        (
            "lobby",
            for_lobby(attributes={"team": "a", "y": "b"}),
            "attributes.y",
            "attribute_not_allowed",
            "team, x.*",
            "line 19",
        ),
        (
            "lobby",
            for_lobby(role="host", attributes={"team": "a", "kind": "boss"}),
            "attributes.kind",
            "fixed_by_role",
            "host",
            "roles.host (line 4)",
        ),
        (
            "lobby",
            for_lobby(role="host", attributes={"team": "x" * 1013}),
            "attributes",
            "too_large",
            1024,
            "roles.host (line 4)",
        ),
        ("plain", wanted(attributes={"a": "b"}), "attributes.a", "attribute_not_allowed", "none", ""),
        ("plain", wanted(role="viewer"), "role", "role_not_allowed", "none", "callers.plain"),
        ("plain", wanted(duration=1), "duration", "too_small", 2, "plain.duration (line 25)"),
        ("plain", wanted(duration=31), "duration", "too_large", 30, "plain.duration (line 25)"),
        ("strict", wanted(duration=91), "duration", "too_large", 90, "strict.duration (line 30)"),
        ("strict", wanted(role="viewer", duration=61), "duration", "too_large", 60, "line 10"),
    ],
)  # fmt: skip
def test_a_refusal_names_field_limit_and_rule(
    caller: str, request_: WantedToken, field: str, code: str, limit: Any, rule: str
) -> None:
    with pytest.raises(PolicyDeniedError) as caught:
        SUT.decide(caller, request_, {}).require()
    found = {(error.field, error.code): error for error in caught.value.errors}
    assert list(found) == [(field, code)]
    error = found[field, code]
    assert limit is None or error.limit == limit
    assert rule in error.detail
    assert field in caught.value.detail


def test_attributes_of_role_and_request_have_one_kilobyte_together() -> None:
    asked = for_lobby(role="host", attributes={"team": "x" * 1013})
    assert not SUT.decide("lobby", asked).allowed
    fits = for_lobby(role="host", attributes={"team": "x" * 1012})
    assert SUT.decide("lobby", fits).allowed


def test_a_fixed_attribute_may_be_repeated_as_it_is() -> None:
    asked = for_lobby(role="host", attributes={"team": "a", "kind": "host"})
    assert SUT.decide("lobby", asked).allowed


def test_all_refusals_are_told_at_once() -> None:
    asked = wanted("hall", duration=90, issuer="auto", capabilities=("PUBLISH",))
    refusals = SUT.decide("lobby", asked, {}).refusals
    assert [refusal.field for refusal in refusals] == [
        "stageArn",
        "issuer",
        "userId",
        "capabilities",
        "duration",
        "attributes.team",
    ]


def test_a_caller_without_a_rule_gets_nothing() -> None:
    with pytest.raises(PolicyDeniedError, match="no rule for the caller nobody"):
        SUT.decide("nobody", wanted()).require()


def test_a_role_is_required_of_a_caller_that_has_only_roles() -> None:
    sut = policy(POLICY.replace("    defaultRole: viewer\n", ""))
    (refusal,) = sut.decide("lobby", for_lobby()).refusals
    assert (refusal.field, refusal.code) == ("role", "required")


def test_the_rule_for_anybody_is_for_those_without_their_own() -> None:
    anybody = '  "*":\n    stages: ["arn:aws:ivs:*"]\n    capabilities: []\n    duration: 1\n'
    sut = policy(POLICY + anybody)
    assert sut.decide("nobody", wanted()).require().duration == 1
    assert sut.decide("plain", wanted()).require().duration == 10


@pytest.mark.parametrize(
    ("name", "region", "tags", "allowed"),
    [
        ("lobby-1", "eu-central-1", None, True),
        ("hall", "eu-central-1", {"tenant": "acme", "more": "x"}, True),
        ("hall", "eu-central-1", {"tenant": "acme2"}, False),
        ("hall", "eu-central-1", {}, False),
        ("hall", "us-east-1", {"env": "prod", "tier": "1"}, True),
        ("hall", "us-east-1", {"env": "prod"}, False),
        ("hall", "eu-west-1", {"env": "prod", "tier": "1"}, False),
    ],
)
def test_stages_are_allowed_by_pattern_or_by_all_tags_of_a_rule(
    name: str, region: str, tags: dict[str, str] | None, allowed: bool
) -> None:
    asked = wanted(name, region, user_id="u", attributes={"team": "a"})
    assert SUT.decide("lobby", asked, tags).allowed is allowed


def test_tags_are_asked_for_only_where_they_decide() -> None:
    assert not SUT.needs_tags("lobby", stage("lobby-1"))
    assert SUT.needs_tags("lobby", stage("hall"))
    assert not SUT.needs_tags("plain", stage("hall"))
    assert not SUT.needs_tags("nobody", stage("hall"))
    (refusal,) = SUT.decide("lobby", for_lobby("hall"), None).refusals
    assert refusal.code == "tags_unknown"


def test_without_a_file_scopes_alone_decide_and_there_are_no_roles() -> None:
    sut = Policy.open(max_duration=30)
    assert sut.is_open
    assert sut.decide("anybody", wanted()).require() == TokenRequest(stage(), duration=30)
    asked = wanted(user_id="u", duration=5, capabilities=(), attributes={"a": "b"}, issuer="ivs")
    request = sut.decide("anybody", asked).require()
    assert request == TokenRequest(stage(), "u", 5, (), {"a": "b"}, "ivs")
    (refusal,) = sut.decide("anybody", wanted(role="host")).refusals
    assert (refusal.field, refusal.code) == ("role", "role_not_allowed")


requests = st.builds(
    WantedToken,
    stage=st.builds(stage, st.sampled_from(["lobby-1", "hall"]), st.sampled_from(["eu-central-1"])),
    user_id=st.none() | st.just("u"),
    role=st.none() | st.sampled_from(["host", "viewer", "boss"]),
    duration=st.none() | st.integers(1, 20_160),
    capabilities=st.none() | st.sampled_from([(), ("PUBLISH",), ("SUBSCRIBE",), CAPABILITIES]),
    attributes=st.none()
    | st.dictionaries(
        st.sampled_from(["team", "kind", "x.a", "x.secret", "y"]), st.text(max_size=9)
    ),
    issuer=st.none() | st.sampled_from(["auto", "local", "ivs"]),
)
tags = st.none() | st.sampled_from([{}, {"tenant": "acme"}, {"tenant": "evil"}])


@given(st.sampled_from(["lobby", "plain", "strict", "nobody"]), requests, tags)
@settings(max_examples=400)
def test_what_is_allowed_is_within_the_rules_and_as_asked(
    caller: str, asked: WantedToken, known: dict[str, str] | None
) -> None:
    findings: list[Finding] = []
    decision = SUT.decide(caller, asked, known, findings=findings)
    assert decision == SUT.decide(caller, asked, known), "explaining changes nothing"
    assert decision.allowed is not bool(decision.refusals)
    denied = [finding.field for finding in findings if not finding.allowed]
    if caller != "nobody":
        assert denied == [refusal.field for refusal in decision.refusals]
    request = decision.request
    if request is None:
        return
    assert caller != "nobody"
    for name in ("user_id", "duration", "capabilities", "issuer"):
        given_value = getattr(asked, name)
        assert given_value is None or getattr(request, name) == given_value
    assert (asked.attributes or {}).items() <= request.attributes.items()
    if "PUBLISH" in request.capabilities:
        assert (caller, asked.role) == ("lobby", "host")
    most = {
        "plain": 30,
        "strict": 60 if asked.role else 90,
        "lobby": 720 if asked.role == "host" else 60,
    }
    assert 1 <= request.duration <= most[caller]
    if caller == "lobby":
        assert asked.stage.id == "lobby-1" or (known or {}).get("tenant") == "acme"
        assert {"y", "x.secret"}.isdisjoint(request.attributes)
        assert "team" in request.attributes
