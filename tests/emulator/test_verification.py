"""Tokens that IVS would take are taken, and all others get IVS's code."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.client_support import NOW, REGION, Stand, private_key
from tokensvc.emulator.verification import TokenRefusedError
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest, participant_payload

_STAND = Stand()
"""Shared by the tests that change nothing."""


def refusal(token: str | None, stand: Stand = _STAND) -> str:
    with pytest.raises(TokenRefusedError) as caught:
        stand.verifier.participant(token)
    return caught.value.code


def connection_refusal(token: str | None, stand: Stand = _STAND) -> str:
    with pytest.raises(TokenRefusedError) as caught:
        stand.verifier.connection(token)
    return caught.value.code


def test_a_token_in_order_is_taken_with_what_it_says():
    claims = _STAND.verifier.participant(_STAND.token())

    assert claims.stage_arn == _STAND.stage.arn
    assert claims.topic == _STAND.stage.id
    assert claims.participant_id == "p1"
    assert claims.user_id == "u1"
    assert claims.attributes == {"name": "Zoë"}
    assert claims.capabilities == ("PUBLISH", "SUBSCRIBE")
    assert claims.expires_at == NOW + 3600
    assert claims.exchangeable


def test_the_claims_that_the_service_makes_are_taken():
    request = TokenRequest(StageArn.parse(_STAND.stage.arn), capabilities=("SUBSCRIBE",))
    endpoints = StageEndpoints(_STAND.world.config.events_url, _STAND.stage.whip_url)
    parts = participant_payload(request, endpoints, participant_id="x", iat=NOW, exp=NOW + 60)
    payload = base64.urlsafe_b64decode(b"".join(parts) + b"==")

    assert _STAND.verifier.participant(_STAND.sign(payload)).capabilities == ("SUBSCRIBE",)


ACCEPTED: dict[str, dict[str, Any]] = {
    "no user id": {"user_id": None},
    "no attributes": {"attributes": None},
    "no capability": {"capabilities": {}},
    "capabilities denied": {"capabilities": {"allow_publish": False}},
    "14 days": {"exp": NOW + 1_209_600},
    "last second": {"iat": NOW - 10, "exp": NOW + 1},
    "iat a minute ahead": {"iat": NOW + 60},
    "longest jti": {"jti": "aZ09_-" + "x" * 58},
    "longest user id": {"user_id": "é" * 128},
    "1 KB of attributes": {"attributes": {"k" * 24: "é" * 500}},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_claims_at_the_limits_are_taken(changes: dict[str, Any]):
    assert _STAND.verifier.participant(_STAND.token(**changes)).exchangeable


INVALID: dict[str, dict[str, Any]] = {
    **{
        f"{name} missing": {name: None}
        for name in (
            [
                "exp",
                "iat",
                "jti",
                "resource",
                "topic",
                "events_url",
                "whip_url",
                "capabilities",
                "version",
            ]
        )
    },
    "exp a float": {"exp": NOW + 3600.0},
    "exp a string": {"exp": str(NOW + 3600)},
    "exp a boolean": {"exp": True},
    "iat a float": {"iat": NOW + 0.5},
    "exp at iat": {"exp": NOW, "iat": NOW},
    "exp in milliseconds": {"exp": (NOW + 3600) * 1000},
    "over 14 days": {"exp": NOW + 1_209_601},
    "iat ahead": {"iat": NOW + 61},
    "jti empty": {"jti": ""},
    "jti long": {"jti": "x" * 65},
    "jti with a dot": {"jti": "a.b"},
    "jti with a newline": {"jti": "a\n"},
    "jti not ASCII": {"jti": "é"},
    "jti a number": {"jti": 7},
    "user id long": {"user_id": "x" * 129},
    "user id a number": {"user_id": 7},
    "attributes of 1025 bytes": {"attributes": {"k" * 25: "é" * 500}},
    "attributes a list": {"attributes": ["a"]},
    "attribute a number": {"attributes": {"a": 1}},
    "attribute null": {"attributes": {"a": None}},
    "lone surrogate": {"attributes": {"a": "\ud800"}},
    "capabilities a list": {"capabilities": ["PUBLISH"]},
    "capability unknown": {"capabilities": {"allow_everything": True}},
    "capability a number": {"capabilities": {"allow_publish": 1}},
    "version a number": {"version": 1.0},
    "version another": {"version": "1.1"},
    "resource not an ARN": {"resource": "stage"},
    "resource a number": {"resource": 7},
    "resource swapped": {
        "resource": f"arn:aws:ivs:{_STAND.world.config.account}:{REGION}:stage/{_STAND.stage.id}"
    },
    "stage of another Region": {"resource": _STAND.stage.arn.replace(REGION, "us-east-1")},
    "stage of another account": {
        "resource": _STAND.stage.arn.replace(_STAND.world.config.account, "210987654321")
    },
    "topic of another stage": {"topic": "abcdefghijkl"},
    "events_url of another": {"events_url": "wss://global.events.live-video.net"},
    "whip_url of another": {"whip_url": "https://0.global-bm.whip.live-video.net"},
    "whip_url a number": {"whip_url": 7},
    "claim unknown": {"nbf": NOW},
    "claim of a connection token": {"region": REGION},
}


@pytest.mark.parametrize("changes", INVALID.values(), ids=INVALID)
def test_claims_out_of_order_are_invalid(changes: dict[str, Any]):
    assert refusal(_STAND.token(**changes)) == "TOKEN_INVALID"


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "typ missing": ({"typ": ""}, "TOKEN_INVALID"),
    "typ another": ({"typ": "at+jwt"}, "TOKEN_INVALID"),
    "kid missing": ({"kid": None}, "TOKEN_INVALID"),
    "kid not an ARN": ({"kid": "abc"}, "TOKEN_INVALID"),
    "kid of a stage": ({"kid": _STAND.stage.arn}, "TOKEN_INVALID"),
    "kid unknown": ({"kid": _STAND.key.arn + "0"}, "TOKEN_INVALID_SIGNATURE"),
    "kid swapped": (
        {"kid": f"arn:aws:ivs:{_STAND.world.config.account}:{REGION}:public-key/a"},
        "TOKEN_INVALID",
    ),
    "critical extension": ({"crit": ["x"], "x": 1}, "TOKEN_INVALID_SIGNATURE"),
}


@pytest.mark.parametrize(("headers", "code"), HEADERS.values(), ids=HEADERS)
def test_headers_out_of_order_are_refused(headers: dict[str, Any], code: str):
    assert refusal(_STAND.sign(_STAND.claims(), **headers)) == code


def test_only_es384_is_taken():
    p256 = private_key("p256", ec.SECP256R1)
    assert refusal(_STAND.sign(_STAND.claims(), key=p256, algorithm="ES256")) == "TOKEN_INVALID"
    secret = "s" * 64
    assert refusal(_STAND.sign(_STAND.claims(), key=secret, algorithm="HS384")) == "TOKEN_INVALID"
    head, payload, _ = _STAND.token().split(".")
    unsigned = base64.urlsafe_b64encode(
        json.dumps({"alg": "none", "typ": "JWT", "kid": _STAND.key.arn}).encode()
    ).decode()
    assert refusal(f"{unsigned.rstrip('=')}.{payload}.") == "TOKEN_INVALID"
    assert refusal(f"{head}.{payload}.") == "TOKEN_INVALID_SIGNATURE"


def test_a_public_key_of_another_curve_verifies_nothing():
    stand = Stand()
    stand.world.delete_public_key(stand.key.arn)
    stand.key = stand.import_key(private_key("p256", ec.SECP256R1))

    assert refusal(stand.token(), stand) == "TOKEN_INVALID_SIGNATURE"


def test_the_signature_of_another_key_is_refused():
    token = _STAND.sign(_STAND.claims(), key=private_key("second"))
    assert refusal(token) == "TOKEN_INVALID_SIGNATURE"


RAW: dict[str, bytes] = {
    "not JSON": b"{",
    "not an object": b"[]",
    "not UTF-8": b'{"a":"\xff"}',
    "nested deeply": b"[" * 5_000 + b"]" * 5_000,
    "NaN": json.dumps(_STAND.claims()).replace('"1.0"', "NaN").encode(),
    "a name twice": json.dumps(_STAND.claims()).replace("{", '{"jti":"p2",', 1).encode(),
    "a capability twice": json.dumps(_STAND.claims())
    .replace('{"allow_publish"', '{"allow_publish":false,"allow_publish"')
    .encode(),
}


@pytest.mark.parametrize("payload", RAW.values(), ids=RAW)
def test_payloads_that_readers_would_read_differently_are_invalid(payload: bytes):
    assert refusal(_STAND.sign(payload)) == "TOKEN_INVALID"


FORMS: dict[str, str] = {
    "one segment": "abc",
    "four segments": _STAND.token() + ".abc",
    "padding": _STAND.token() + "=",
    "white space": _STAND.token() + "\n",
    "not base64url": "+".join(_STAND.token().split(".", 1)),
    "impossible length": "a" + _STAND.token(),
    "too long": _STAND.token() + "A" * 16_384,
}


@pytest.mark.parametrize("token", FORMS.values(), ids=FORMS)
def test_what_is_not_compact_serialisation_is_invalid(token: str):
    assert refusal(token) == "TOKEN_INVALID"


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_said_to_be_missing(token: str | None):
    assert refusal(token) == "TOKEN_MISSING"
    assert connection_refusal(token) == "TOKEN_MISSING"


def test_a_token_expires_at_exp():
    stand = Stand()
    token = stand.token()
    stand.time = NOW + 3599.9
    stand.verifier.participant(token)
    stand.time = NOW + 3600

    assert refusal(token, stand) == "TOKEN_EXPIRED"


def test_a_deleted_stage_is_said_to_be_deleted():
    stand = Stand()
    token = stand.token()
    stand.world.delete_stage(stand.stage.arn)

    assert refusal(token, stand) == "STAGE_DELETED"


def test_a_key_counts_from_when_it_is_seen_until_it_is_deleted():
    stand = Stand()
    token = stand.token()
    stand.verifier.participant(token)
    stand.world.delete_public_key(stand.key.arn)
    assert refusal(token, stand) == "TOKEN_INVALID_SIGNATURE"

    stand.world.key_visible_after = 5
    stand.key = stand.import_key(private_key())
    token = stand.token()
    assert refusal(token, stand) == "TOKEN_INVALID_SIGNATURE"
    stand.time += 5
    stand.verifier.participant(token)


def test_a_key_is_good_for_its_region_only():
    stand = Stand()
    stand.key = stand.import_key(private_key(), "us-east-1")

    assert refusal(stand.token(), stand) == "TOKEN_INVALID"


def test_tokens_that_ivs_issued_are_known_again_and_never_exchangeable():
    stand = Stand()
    token = stand.issue(user_id="u7", attributes={"a": "b"})
    claims = stand.verifier.participant(token)
    assert (claims.participant_id, claims.user_id) == ("api1", "u7")
    assert claims.capabilities == ("SUBSCRIBE",)
    assert not claims.exchangeable

    stand.time = NOW + 3600
    assert refusal(token, stand) == "TOKEN_EXPIRED"
    stand.time = NOW
    stand.world.delete_stage(stand.stage.arn)
    assert refusal(token, stand) == "STAGE_DELETED"


def test_a_refusal_carries_claims_only_of_a_proven_token():
    stand = Stand()
    with pytest.raises(TokenRefusedError) as forged:
        stand.verifier.participant(stand.sign(stand.claims(), key=private_key("second")))
    assert forged.value.claims is None

    token = stand.token()
    stand.time = NOW + 3600
    with pytest.raises(TokenRefusedError) as expired:
        stand.verifier.participant(token)
    assert expired.value.claims is not None
    assert expired.value.claims.participant_id == "p1"
    assert token not in str(expired.value)


def test_a_connection_token_in_order_is_taken():
    claims = _STAND.verifier.connection(_STAND.connection_token(exp=NOW + 2_419_200))

    assert (claims.token_id, claims.region) == ("c1", REGION)
    assert claims.expires_at == NOW + 2_419_200


CONNECTION_INVALID: dict[str, dict[str, Any]] = {
    **{
        f"{name} missing": {name: None}
        for name in ["exp", "iat", "jti", "account_id", "region", "events_url", "version"]
    },
    **{
        f"{name} forbidden": {name: _STAND.claims()[name]}
        for name in ["resource", "topic", "whip_url", "capabilities", "attributes", "user_id"]
    },
    "over 28 days": {"exp": NOW + 2_419_201},
    "another account": {"account_id": "210987654321"},
    "account a number": {"account_id": 123456789012},
    "another Region": {"region": "us-east-1"},
    "another events_url": {"events_url": "ws://127.0.0.1:1"},
    "another version": {"version": "2.0"},
    "jti long": {"jti": "x" * 65},
}


@pytest.mark.parametrize("changes", CONNECTION_INVALID.values(), ids=CONNECTION_INVALID)
def test_connection_claims_out_of_order_are_invalid(changes: dict[str, Any]):
    assert connection_refusal(_STAND.connection_token(**changes)) == "TOKEN_INVALID"


def test_connection_tokens_expire_and_are_revoked():
    stand = Stand()
    token = stand.connection_token()
    stand.sessions.revoke_connection_token("us-east-1", "c1")
    stand.verifier.connection(token)
    stand.sessions.revoke_connection_token(REGION, "c1")
    assert connection_refusal(token, stand) == "TOKEN_REVOKED"
    assert stand.verifier.connection(stand.connection_token(jti="c2")).token_id == "c2"
    stand.time = NOW + 3600
    assert connection_refusal(stand.connection_token(jti="c2"), stand) == "TOKEN_EXPIRED"


def test_the_two_kinds_of_token_do_not_pass_for_each_other():
    assert refusal(_STAND.connection_token()) == "TOKEN_INVALID"
    assert connection_refusal(_STAND.token()) == "TOKEN_INVALID"


@settings(max_examples=150, deadline=None)
@given(position=st.integers(min_value=0), change=st.characters(codec="utf-8"))
def test_no_token_that_was_tampered_with_is_taken(position: int, change: str):
    token = _TOKEN
    at = position % len(token)
    tampered = token[:at] + change + token[at + 1 :]
    if tampered != token:
        assert refusal(tampered) in {"TOKEN_INVALID", "TOKEN_INVALID_SIGNATURE"}


_TOKEN = _STAND.token()


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_text_is_refused_with_a_code(text: str):
    assert refusal(text) in {"TOKEN_INVALID", "TOKEN_MISSING"}
    assert connection_refusal(text) in {"TOKEN_INVALID", "TOKEN_MISSING"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(_STAND.claims())), value=_JSON)
def test_any_claim_of_any_type_is_judged(name: str, value: object):
    claims = _STAND.claims()
    if value == claims[name]:
        return
    claims[name] = value
    try:
        taken = _STAND.verifier.participant(_STAND.sign(claims))
    except TokenRefusedError as error:
        assert error.code in {"TOKEN_INVALID", "TOKEN_EXPIRED"}
    else:
        assert name in {"exp", "iat", "jti", "capabilities", "attributes", "user_id"}
        assert taken.stage_arn == _STAND.stage.arn
