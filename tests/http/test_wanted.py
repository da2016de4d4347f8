"""A request that is plainly right is read as field by field, and one that is not gets the same faults."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.errors import TokenServiceError
from tokensvc.http.bodies import decode_json
from tokensvc.http.wanted import read_plain_tokens, read_wanted_token
from tokensvc.tokens.claims import WantedToken
from tokensvc.tokens.plain import plain_json
from tokensvc.tokens.validate import NOTHING, Defaults, parse_defaults, parse_wanted_token

STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/LSC8P4Bq1vGb"
ELSEWHERE = STAGE.replace("eu-central-1", "us-east-1")
REGIONS = frozenset({"eu-central-1"})
MAX_DURATION = 1000

VALUES = {
    "stageArn": [STAGE, STAGE + "x", ELSEWHERE, "", "arn:aws:ivs", STAGE + "\n", 5, None],
    "userId": ["ana", "", "Žofie", "u" * 128, "u" * 129, "😀" * 128, 5, None, ["a"]],
    "role": ["host", "a b", "", "r" * 65, "host\n", 1, None],
    "duration": [1, 1000, 0, -1, 1001, 5.0, 5.5, True, "5", 10**30, 1e300, None],
    "capabilities": [
        [], ["PUBLISH"], ["SUBSCRIBE", "PUBLISH"], ["PUBLISH", "PUBLISH"], ["publish"],
        ["PUBLISH", "SUBSCRIBE", "PUBLISH"], [1], "PUBLISH", None,
    ],
    "attributes": [
        {}, {"team": "red"}, {"Ö": "日本"}, {"": "v" * 1024}, {"k": "v" * 1024},
        {"k": "ü" * 511, "": ""}, {"k": "ü" * 512}, {"k": 1}, {"k": None}, [], "a", None,
    ],
    "issuer": ["auto", "local", "ivs", "IVS", "", 1, None],
    "userid": ["ana"],
}  # fmt: skip

Outcome = WantedToken | tuple[object, ...]


def outcome(read: object, *arguments: object, **options: object) -> Outcome:
    try:
        found = read(*arguments, regions=REGIONS, max_duration=MAX_DURATION, **options)  # type: ignore[operator]
    except TokenServiceError as error:
        return (type(error), error.detail, error.errors)
    assert isinstance(found, WantedToken)
    return found


def field_by_field(text: bytes, defaults: Defaults) -> Outcome:
    try:
        body = decode_json(text)
    except TokenServiceError as error:
        return (type(error), error.detail, error.errors)
    return outcome(parse_wanted_token, body, defaults=Defaults(defaults.fields, None))


def fields() -> st.SearchStrategy[dict[str, object]]:
    some: dict[str, st.SearchStrategy[object]] = {
        name: st.sampled_from(values) for name, values in VALUES.items()
    }
    return st.fixed_dictionaries({}, optional=some)


def users() -> st.SearchStrategy[dict[str, object]]:
    """Items that differ in nothing but that, as nearly all do."""
    names = ("userId", "attributes")
    some: dict[str, st.SearchStrategy[object]] = {
        name: st.sampled_from(VALUES[name]) for name in names
    }
    return st.fixed_dictionaries({}, optional=some)


@given(fields(), fields())
def test_both_readings_agree(body: dict[str, object], given_defaults: dict[str, object]):
    try:
        defaults = parse_defaults(given_defaults, regions=REGIONS, max_duration=MAX_DURATION)
    except TokenServiceError:
        defaults = NOTHING
    text = json.dumps(body).encode()
    slow = field_by_field(text, defaults)
    assert outcome(read_wanted_token, text, defaults=defaults) == slow
    assert outcome(parse_wanted_token, body, defaults=defaults) == slow


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_read_alike(name: str):
    for value in VALUES[name]:
        text = json.dumps({"stageArn": STAGE, name: value}).encode()
        assert outcome(read_wanted_token, text) == field_by_field(text, NOTHING), value


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"1", b'"a"', b"{}x", b" ", b"\xff", b'{"userId":"\xff"}',
        b"[" * 100_000, b'{"attributes":' * 100_000,
        b'{"stageArn":"%b","userId":"a","userId":"b"}' % STAGE.encode(),
        b'{"stageArn":"%b","userId":5,"userId":"b"}' % STAGE.encode(),
        b'{"stageArn":"%b","userId":"b","userId":5}' % STAGE.encode(),
        b'{"stageArn":"%b","userId":"b","userId":null}' % STAGE.encode(),
        b'{"stageArn":"%b","userId":"\\ud800"}' % STAGE.encode(),
        b'{"stageArn":"%b","userId":"\\ud83d\\ude00"}' % STAGE.encode(),
        b'{"stageArn":"%b","attributes":{"a":"1","a":"2"}}' % STAGE.encode(),
        b'{"stageArn":"%b","duration":1e400}' % STAGE.encode(),
        b' {\n"stageArn"\t: "%b" } ' % STAGE.encode(),
        b'{"stage\\u0041rn":"%b"}' % STAGE.encode(),
    ],
)  # fmt: skip
def test_odd_texts_are_read_alike(text: bytes):
    assert outcome(read_wanted_token, text) == field_by_field(text, NOTHING)


def test_a_right_request_is_read_in_one_go():
    whole = {
        "stageArn": STAGE, "userId": "Žofie", "role": "host", "duration": 5,
        "capabilities": ["SUBSCRIBE"], "attributes": {"a": "b"}, "issuer": "local",
    }  # fmt: skip
    assert plain_json(json.dumps(whole).encode()) is not None


@given(
    st.lists(st.one_of(fields(), users()), min_size=1, max_size=6), st.one_of(fields(), st.just({}))
)
def test_many_are_read_as_one_by_one(
    bodies: list[dict[str, object]], given_defaults: dict[str, object]
):
    try:
        defaults = parse_defaults(given_defaults, regions=REGIONS, max_duration=MAX_DURATION)
    except TokenServiceError:
        defaults = parse_defaults({"stageArn": STAGE}, regions=REGIONS, max_duration=MAX_DURATION)
    texts = [json.dumps(body).encode() for body in bodies]
    found = read_plain_tokens(
        [msgspec.Raw(text) for text in texts],
        regions=REGIONS,
        max_duration=MAX_DURATION,
        defaults=defaults,
    )
    alone = [field_by_field(text, defaults) for text in texts]
    if found is not None:
        assert found == alone
    elif all(isinstance(one, WantedToken) for one in alone):
        # Only what is right in an unusual way is left to the other way.
        assert any("5.0" in text.decode() for text in texts) or defaults.plain is None
