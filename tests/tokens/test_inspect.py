"""Inspection says why IVS would refuse a token, for each reason there is."""

import json
from base64 import urlsafe_b64encode

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.signing import SigningKey, generate_private_key, load_signer, public_key_pem
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.reading import unverified_kid

NOW = 1_790_000_000
KID = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
CLAIMS = {
    "exp": NOW + 3600,
    "iat": NOW - 5,
    "jti": "participant000000001",
    "resource": "arn:aws:ivs:eu-central-1:123456789012:stage/LSC8P4Bq1vGb",
    "topic": "LSC8P4Bq1vGb",
    "events_url": "wss://global.events.live-video.net",
    "whip_url": "https://f99084460c35.global-bm.whip.live-video.net",
    "capabilities": {"allow_publish": True},
    "attributes": {},
    "version": "1.0",
    "user_id": "ana",
}
CONNECTION = {
    "exp": NOW + 3600,
    "iat": NOW,
    "jti": "connection1",
    "account_id": "123456789012",
    "region": "eu-central-1",
    "events_url": "wss://global.events.live-video.net",
    "version": "1.0",
}


@pytest.fixture(scope="module")
def private_der():
    return generate_private_key()


@pytest.fixture(scope="module")
def key(private_der):
    return SigningKey("k", KID, load_signer(private_der))


@pytest.fixture(scope="module")
def inspect(private_der):
    pem = public_key_pem(private_der)

    def judge(token, now=NOW):
        return inspect_token(token, now=now, public_key_for=lambda kid: pem if kid == KID else None)

    return judge


def codes(inspection):
    return {finding.code for finding in inspection.refusals}


def warnings(inspection):
    return {finding.code for finding in inspection.findings if finding.severity == "warning"}


def segment(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_good_token(key, inspect):
    inspection = inspect(key.mint(CLAIMS))
    assert inspection.acceptable
    assert (inspection.kind, inspection.signature, inspection.findings) == (
        "participant",
        "valid",
        (),
    )
    assert inspection.claims == CLAIMS


def test_a_good_connection_token(key, inspect):
    inspection = inspect(key.mint(CONNECTION))
    assert (inspection.kind, inspection.acceptable) == ("connection", True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 10}, "exp_before_iat"),
        ({"exp": NOW - 5 + 1_209_601}, "ttl_too_long"),
        ({"exp": float(NOW + 60)}, "type"),
        ({"exp": str(NOW + 60)}, "type"),
        ({"iat": NOW * 1000}, "time_range"),
        ({"iat": True}, "type"),
        ({"jti": "a b"}, "jti"),
        ({"jti": "a" * 65}, "jti"),
        ({"jti": 7}, "jti"),
        (
            {"resource": "arn:aws:ivs:123456789012:eu-central-1:stage/LSC8P4Bq1vGb"},
            "resource_swapped",
        ),
        ({"resource": "LSC8P4Bq1vGb"}, "resource"),
        ({"resource": 1}, "type"),
        ({"resource": "arn:aws:ivs:us-east-1:123456789012:stage/LSC8P4Bq1vGb"}, "region_mismatch"),
        (
            {"resource": "arn:aws:ivs:eu-central-1:210987654321:stage/LSC8P4Bq1vGb"},
            "account_mismatch",
        ),
        ({"topic": "other"}, "topic"),
        ({"events_url": "https://global.events.live-video.net"}, "url"),
        ({"events_url": "wss://[bad"}, "url"),
        ({"whip_url": "whip"}, "url"),
        ({"whip_url": "https://w.test/" + "x" * 2048}, "too_long"),
        ({"capabilities": ["PUBLISH"]}, "type"),
        ({"capabilities": {"allow_publish": "yes"}}, "type"),
        ({"attributes": {"level": 3}}, "type"),
        ({"attributes": {"k": "v" * 1024}}, "too_large"),
        ({"attributes": []}, "type"),
        ({"user_id": 3}, "type"),
        ({"user_id": "u" * 129}, "too_long"),
        ({"version": 1.0}, "version"),
        ({"version": "0.0"}, "version"),
    ],
)
def test_each_bad_claim_is_told(key, inspect, change, code):
    inspection = inspect(key.mint(CLAIMS | change))
    assert code in codes(inspection)
    assert not inspection.acceptable
    assert inspection.signature == "valid"


@pytest.mark.parametrize(
    "claim", [name for name in CLAIMS if name not in ("attributes", "user_id")]
)
def test_each_missing_claim_is_told(key, inspect, claim):
    inspection = inspect(key.mint({name: value for name, value in CLAIMS.items() if name != claim}))
    assert [(f.code, f.where) for f in inspection.refusals] == [("missing_claim", claim)]


@pytest.mark.parametrize(("ahead", "told"), [(0, set()), (1, {"future_iat"})])
def test_a_token_of_this_very_second_is_not_of_the_future(key, inspect, ahead, told):
    inspection = inspect(key.mint({**CLAIMS, "iat": NOW + ahead, "exp": NOW + 3600}))
    assert {finding.code for finding in inspection.findings} == told


@pytest.mark.parametrize("claim", ["attributes", "user_id"])
def test_optional_claims_may_be_missing(key, inspect, claim):
    assert inspect(key.mint({n: v for n, v in CLAIMS.items() if n != claim})).acceptable


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"iat": NOW + 30}, "future_iat"),
        ({"exp": NOW + 20}, "short_ttl"),
        ({"capabilities": {}}, "no_capability"),
        ({"capabilities": {"allow_publish": True, "allow_dance": True}}, "unknown_capability"),
        ({"attributes": {"gs_role": "x"}}, "reserved_attribute"),
        ({"nbf": NOW}, "unknown_claim"),
    ],
)
def test_what_is_odd_but_joins_is_a_warning(key, inspect, change, code):
    inspection = inspect(key.mint(CLAIMS | change))
    assert code in warnings(inspection)
    assert inspection.acceptable


def test_fourteen_days_to_the_second_are_fine(key, inspect):
    assert inspect(key.mint(CLAIMS | {"iat": NOW, "exp": NOW + 1_209_600})).acceptable


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"whip_url": "https://w.test"}, "forbidden_claim"),
        ({"user_id": "ana"}, "forbidden_claim"),
        ({"exp": NOW + 2_419_201}, "ttl_too_long"),
        ({"account_id": 123}, "type"),
        ({"account_id": "210987654321"}, "account_mismatch"),
        ({"region": "us-east-1"}, "region_mismatch"),
        ({"region": 1}, "type"),
    ],
)
def test_connection_tokens_have_their_own_rules(key, inspect, change, code):
    assert code in codes(inspect(key.mint(CONNECTION | change)))


def test_a_connection_token_has_a_minute_of_grace(key, inspect):
    token = key.mint(CONNECTION | {"exp": NOW, "iat": NOW - 100})
    assert "expired" not in codes(inspect(token, NOW + 59))
    assert "expired" in codes(inspect(token, NOW + 60))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alg": "HS384", "typ": "JWT", "kid": KID}, "alg"),
        ({"alg": "none", "typ": "JWT", "kid": KID}, "alg"),
        ({"alg": "ES384", "kid": KID}, "typ"),
        ({"alg": "ES384", "typ": "JWT"}, "kid_missing"),
        ({"alg": "ES384", "typ": "JWT", "kid": "key-1"}, "kid"),
        (
            {
                "alg": "ES384",
                "typ": "JWT",
                "kid": KID.replace("eu-central-1:123456789012", "123456789012:eu-central-1"),
            },
            "kid_swapped",
        ),
        ({"alg": "ES384", "typ": "JWT", "kid": KID[:-1] + "b"}, "unknown_kid"),
    ],
)
def test_each_bad_header_is_told(key, inspect, header, code):
    _, payload, signature = key.mint(CLAIMS).split(".")
    inspection = inspect(f"{segment(json.dumps(header).encode())}.{payload}.{signature}")
    assert code in codes(inspection)
    assert not inspection.acceptable


def test_a_changed_payload_does_not_verify(key, inspect):
    header, _, signature = key.mint(CLAIMS).split(".")
    payload = segment(json.dumps(CLAIMS | {"user_id": "eve"}).encode())
    inspection = inspect(f"{header}.{payload}.{signature}")
    assert (inspection.signature, codes(inspection)) == ("invalid", {"bad_signature"})


def test_another_keys_signature_does_not_verify(inspect):
    stranger = SigningKey("s", KID, load_signer(generate_private_key()))
    assert codes(inspect(stranger.mint(CLAIMS))) == {"bad_signature"}


def test_a_der_signature_is_recognised(key, inspect):
    header, payload, _ = key.mint(CLAIMS).split(".")
    inspection = inspect(f"{header}.{payload}.{segment(b'0' + bytes(102))}")
    assert codes(inspection) == {"signature_length"}
    assert "DER" in inspection.refusals[0].detail


def test_without_a_key_to_check_with_it_says_so(key):
    inspection = inspect_token(key.mint(CLAIMS), now=NOW)
    assert inspection.signature == "not_checked"
    assert not inspection.acceptable
    assert warnings(inspection) == {"signature_not_checked"}


def test_raw_utf8_is_told(private_der, inspect):
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    signer = load_der_private_key(private_der, None)
    payload = json.dumps(CLAIMS | {"user_id": "Zoë"}, ensure_ascii=False).encode()
    token = jwt.PyJWS().encode(payload, signer, "ES384", headers={"kid": KID})
    inspection = inspect(token)
    assert warnings(inspection) == {"raw_utf8"}
    assert inspection.claims["user_id"] == "Zoë"


@pytest.mark.parametrize(
    ("mangle", "code"),
    [
        (lambda token: token + "=", "padding"),
        (lambda token: token[:50] + "\n" + token[50:], "whitespace"),
        (lambda token: token.rpartition(".")[0], "not_compact"),
        (lambda token: "!" + token[1:], "base64"),
        (lambda token: segment(b"[]") + token[token.index(".") :], "json"),
        (lambda token: segment(b'{"a":NaN}') + token[token.index(".") :], "json"),
        (lambda token: segment(b'{"a":"\\ud800"}') + token[token.index(".") :], "lone_surrogate"),
        (lambda token: segment(b"[" * 100_000)[:9000] + token[token.index(".") :], "json"),
        (lambda token: token + "a" * 20_000, "too_large"),
    ],
)
def test_each_bad_form_is_told(key, inspect, mangle, code):
    assert code in codes(inspect(mangle(key.mint(CLAIMS))))


def test_a_name_twice_is_told(key, inspect):
    token = key.mint(CLAIMS)
    twice = segment(b'{"alg":"ES384","typ":"JWT","kid":"a","kid":"b"}')
    assert "duplicate_name" in warnings(inspect(twice + token[token.index(".") :]))


def test_a_token_that_ivs_issued_is_opaque(inspect):
    header = segment(json.dumps({"alg": "KMS", "typ": "JWT"}).encode())
    payload = segment(json.dumps({"exp": NOW + 60, "version": "0.0"}).encode())
    inspection = inspect(f"{header}.{payload}.{segment(bytes(103))}")
    assert (inspection.kind, inspection.signature) == ("ivs-issued", "not_checked")
    assert not inspection.refusals
    assert codes(inspect(f"{header}.{payload}.{segment(bytes(103))}", NOW + 60)) == {"expired"}


@pytest.mark.parametrize("exp", [b"-1", b"-" + b"9" * 400, b"-" + b"9" * 4300])
def test_a_token_that_ivs_issued_may_hold_any_number(inspect, exp):
    header = segment(b'{"alg":"KMS","typ":"JWT"}')
    payload = segment(b'{"exp":' + exp + b"}")
    inspection = inspect(f"{header}.{payload}.AAAA", NOW + 0.5)
    assert codes(inspection) == {"expired"}
    assert max(len(finding.detail) for finding in inspection.findings) < 100


def test_what_is_said_is_short_whatever_the_token_says(key, inspect):
    name = "n" * 5_000
    for token in (
        key.mint(CONNECTION | {"region": name, "account_id": name}),
        key.mint(CLAIMS | {"resource": name, name: 1, "attributes": {name: 1}}),
        segment(
            json.dumps({name: 1})[:-1].encode() + json.dumps({name: 2}).replace("{", ",").encode()
        )
        + ".e30.",
    ):
        for finding in inspect(token).findings:
            assert len(finding.where) < 100
            assert len(finding.detail) < 200


def test_the_kid_can_be_read_to_look_its_key_up(key):
    assert unverified_kid(key.mint(CLAIMS)) == KID
    assert unverified_kid("a.b.c") is None


@given(
    st.text(max_size=200)
    | st.lists(st.binary(max_size=60), max_size=4).map(lambda parts: ".".join(map(segment, parts)))
)
def test_whatever_the_text_is_there_is_an_answer(text):
    inspection = inspect_token(text, now=NOW, public_key_for=lambda kid: None)
    assert not inspection.acceptable
    assert inspection.findings


@given(
    st.dictionaries(
        st.sampled_from(sorted(CLAIMS | CONNECTION)),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(codec="utf-8")),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner)
            ),
            max_leaves=6,
        ),
    )
)
def test_whatever_the_claims_are_there_is_an_answer(claims):
    header = segment(json.dumps({"alg": "ES384", "typ": "JWT", "kid": KID}).encode())
    payload = segment(json.dumps(claims).encode())
    inspection = inspect_token(f"{header}.{payload}.{segment(bytes(96))}", now=NOW)
    assert inspection.claims == claims
    assert not inspection.acceptable
