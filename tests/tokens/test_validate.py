"""Bad input gets an error that names every bad field and its limit; good input is taken as it is."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.errors import InvalidRequestError
from tokensvc.tokens import fields
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn, StageArn
from tokensvc.tokens.claims import (
    StageEndpoints,
    TokenRequest,
    WantedToken,
    participant_payload,
)
from tokensvc.tokens.ids import is_token_id, new_participant_id
from tokensvc.tokens.validate import parse_defaults, parse_token_request, parse_wanted_token

STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/LSC8P4Bq1vGb"
REGIONS = ("eu-central-1",)

text = st.text(st.characters(codec="utf-8"))


def parse(body, **options):
    return parse_token_request(body, regions=REGIONS, **options)


def faults(body, **options):
    with pytest.raises(InvalidRequestError) as caught:
        parse(body, **options)
    return {(error.field, error.code): error for error in caught.value.errors}


def test_the_least_request_gets_ivs_defaults():
    assert parse({"stageArn": STAGE}) == TokenRequest(
        stage=StageArn("eu-central-1", "123456789012", "LSC8P4Bq1vGb"),
        user_id=None,
        duration=720,
        capabilities=("PUBLISH", "SUBSCRIBE"),
        attributes={},
        issuer="auto",
    )


def test_what_is_left_out_stays_open_for_a_policy():
    stage = StageArn("eu-central-1", "123456789012", "LSC8P4Bq1vGb")
    assert parse_wanted_token({"stageArn": STAGE}, regions=REGIONS) == WantedToken(stage)
    given = {"stageArn": STAGE, "role": "host", "capabilities": [], "attributes": {}}
    wanted = parse_wanted_token(given, regions=REGIONS)
    assert wanted == WantedToken(stage, role="host", capabilities=(), attributes={})


def test_null_means_not_given():
    fields = ("userId", "role", "duration", "capabilities", "attributes", "issuer")
    assert parse({"stageArn": STAGE} | dict.fromkeys(fields)) == parse({"stageArn": STAGE})


def test_the_default_duration_stays_within_the_operators_limit():
    assert parse({"stageArn": STAGE}, max_duration=30).duration == 30


@pytest.mark.parametrize(
    ("change", "field", "code", "limit"),
    [
        ({"stageArn": None}, "stageArn", "required", None),
        ({"stageArn": 7}, "stageArn", "type", None),
        ({"stageArn": "LSC8P4Bq1vGb"}, "stageArn", "pattern", None),
        ({"stageArn": STAGE + "x" * 128}, "stageArn", "pattern", None),
        ({"stageArn": STAGE.replace("stage/", "public-key/")}, "stageArn", "pattern", None),
        (
            {"stageArn": STAGE.replace("eu-central-1", "us-east-1")},
            "stageArn",
            "region_not_served",
            "eu-central-1",
        ),
        ({"userId": 1}, "userId", "type", None),
        ({"userId": "u" * 129}, "userId", "too_long", 128),
        ({"userId": "\ud800"}, "userId", "encoding", None),
        ({"userId": "a\0b"}, "userId", "encoding", None),
        ({"duration": "720"}, "duration", "type", None),
        ({"duration": True}, "duration", "type", None),
        ({"duration": 1.5}, "duration", "type", None),
        ({"duration": 0}, "duration", "too_small", 1),
        ({"duration": -(10**400)}, "duration", "too_small", 1),
        ({"duration": 20161}, "duration", "too_large", 20160),
        ({"capabilities": "PUBLISH"}, "capabilities", "type", None),
        ({"capabilities": ["publish"]}, "capabilities[0]", "unknown_value", "PUBLISH, SUBSCRIBE"),
        (
            {"capabilities": ["PUBLISH", {}]},
            "capabilities[1]",
            "unknown_value",
            "PUBLISH, SUBSCRIBE",
        ),
        ({"capabilities": ["PUBLISH", "PUBLISH"]}, "capabilities[1]", "duplicate", None),
        ({"capabilities": ["PUBLISH", "SUBSCRIBE", "PUBLISH"]}, "capabilities", "too_many", 2),
        ({"attributes": ["a"]}, "attributes", "type", None),
        ({"attributes": {"level": 3}}, "attributes.level", "type", None),
        ({"attributes": {"k": "v" * 1024}}, "attributes", "too_large", 1024),
        ({"attributes": {"k": "é" * 512}}, "attributes", "too_large", 1024),
        ({"attributes": {"k": "\udfff"}}, "attributes.k", "encoding", None),
        ({"attributes": {"\udfff": "v"}}, "attributes", "encoding", None),
        ({"issuer": "aws"}, "issuer", "unknown_value", "auto, local, ivs"),
        ({"issuer": []}, "issuer", "type", None),
        ({"role": 7}, "role", "type", None),
        ({"role": ""}, "role", "pattern", "1 to 64 of a-z, A-Z, 0-9, _ and -"),
        ({"role": "r" * 65}, "role", "pattern", None),
        ({"role": "host\n"}, "role", "pattern", None),
        ({"role": "host"}, "role", "no_policy", None),
        ({"userID": "ana"}, "userID", "unknown_field", None),
        ({"\ud800": None}, "?", "unknown_field", None),
    ],
)
def test_a_bad_field_is_named_with_its_limit(change, field, code, limit):
    found = faults({"stageArn": STAGE} | change)
    assert (field, code) in found
    if limit is not None:
        assert found[field, code].limit == limit


def test_every_bad_field_is_named_at_once():
    found = faults(
        {"userId": 1, "duration": 0, "capabilities": 1, "attributes": 1, "issuer": 1, "x": 1}
    )
    assert {field for field, _ in found} == {
        "stageArn",
        "userId",
        "duration",
        "capabilities",
        "attributes",
        "issuer",
        "x",
    }


def test_the_error_says_value_limit_and_setting():
    error = faults({"stageArn": STAGE, "duration": 90}, max_duration=60)["duration", "too_large"]
    assert error.detail == "is 90 minutes; TOKENSVC_MAX_DURATION allows 60"


def test_an_unknown_field_names_the_closest():
    error = faults({"stageArn": STAGE, "userid": "a"})["userid", "unknown_field"]
    assert "did you mean userId?" in error.detail


def test_thousands_of_faults_cost_no_more_than_those_that_are_told(monkeypatch):
    """A request may hold thousands of made-up names; comparing all of them took 100 ms."""
    compared, typed = [], []
    monkeypatch.setattr(fields, "get_close_matches", lambda *given, **_: compared.append(given))
    real = fields.json_type
    monkeypatch.setattr(fields, "json_type", lambda value: typed.append(value) or real(value))
    with pytest.raises(InvalidRequestError) as caught:
        parse({"stageArn": STAGE} | {f"x{n}": 1 for n in range(3_000)})
    assert len(caught.value.errors) == len(compared) == 20
    assert [error.field for error in caught.value.errors] == [f"x{n}" for n in range(20)]
    assert caught.value.detail.endswith("and 2997 more")
    with pytest.raises(InvalidRequestError) as caught:
        parse({"stageArn": STAGE, "attributes": {f"x{n}": n for n in range(3_000)}})
    assert len(caught.value.errors) == len(typed) == 20


@pytest.mark.parametrize("body", [None, [], "x", 3, True])
def test_a_body_that_is_no_object(body):
    with pytest.raises(InvalidRequestError, match="must be a JSON object"):
        parse(body)


def test_defaults_stand_in_and_the_item_wins():
    defaults = parse_defaults({"stageArn": STAGE, "duration": 5, "userId": "d"}, regions=REGIONS)
    request = parse({"userId": "mine", "duration": None}, defaults=defaults)
    assert (request.user_id, request.duration, str(request.stage)) == ("mine", 5, STAGE)


def test_bad_defaults_are_the_batchs_fault():
    with pytest.raises(InvalidRequestError) as caught:
        parse_defaults({"duration": 0, "nope": 1}, regions=REGIONS)
    assert {error.field for error in caught.value.errors} == {"defaults.duration", "defaults.nope"}
    with pytest.raises(InvalidRequestError):
        parse_defaults([], regions=REGIONS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["stageArn", "userId", "duration", "capabilities", "attributes", "issuer", "role"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values) | json_values)
def test_anything_is_taken_or_refused_with_named_fields(body):
    try:
        request = parse(body)
    except InvalidRequestError as error:
        assert error.errors
        json.dumps([entry.detail for entry in error.errors], ensure_ascii=False).encode()
    else:
        assert isinstance(request, TokenRequest)


@given(
    user_id=st.none() | text.filter(lambda value: len(value) <= 128 and "\0" not in value),
    duration=st.integers(1, 20160),
    capabilities=st.lists(st.sampled_from(["PUBLISH", "SUBSCRIBE"]), unique=True),
    attributes=st.dictionaries(text, text, max_size=5).filter(
        lambda value: sum(len((k + v).encode()) for k, v in value.items()) <= 1024
    ),
)
def test_what_is_within_limits_arrives_unchanged_and_in_ascii(
    user_id, duration, capabilities, attributes
):
    body = {
        "stageArn": STAGE,
        "userId": user_id,
        "duration": duration,
        "capabilities": capabilities,
        "attributes": attributes,
    }
    request = parse(body)
    parts = participant_payload(
        request,
        StageEndpoints("wss://e.test", "https://w.test"),
        participant_id="p",
        iat=1,
        exp=1 + 60 * duration,
    )
    from base64 import urlsafe_b64decode

    payload = urlsafe_b64decode(b"".join(parts) + b"==")
    assert payload.isascii()
    read = json.loads(payload)
    assert read.get("user_id") == user_id
    assert read["attributes"] == attributes
    assert set(read["capabilities"]) == {f"allow_{name.lower()}" for name in capabilities}


@given(
    region=st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20),
    account=st.text(string.digits, min_size=1, max_size=12),
    name=st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=60),
)
def test_arns_round_trip(region, account, name):
    for kind in (StageArn, PublicKeyArn):
        arn = kind(region, account, name)
        if not region.isdecimal() or len(region) != 12:
            assert kind.parse(str(arn)) == arn


@pytest.mark.parametrize(
    "text", ["", "arn:aws:ivs", STAGE + "\n", " " + STAGE, STAGE.replace("aws", "aws-cn")]
)
def test_what_is_no_stage_arn(text):
    with pytest.raises(InvalidArnError):
        StageArn.parse(text)


def test_swapped_account_and_region_are_recognised():
    with pytest.raises(InvalidArnError, match="swapped"):
        StageArn.parse("arn:aws:ivs:123456789012:eu-central-1:stage/LSC8P4Bq1vGb")


def test_participant_ids_are_what_ivs_takes_and_never_repeat():
    ids = {new_participant_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_token_id(one) and len(one) == 20 for one in ids)
    assert not is_token_id("a" * 65)
    assert not is_token_id("")
    assert not is_token_id("a.b")
