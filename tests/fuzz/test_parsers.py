"""Every parser of what comes from outside: a value that holds its rules, or the error it promises."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Request

from tests.fuzz.values import JSON, TEXT, cut_and_joined, near
from tests.http.support import stage_arn
from tests.policy.support import POLICY
from tokensvc.callers import ApiKey
from tokensvc.callers.api_key import read_bearer
from tokensvc.errors import (
    ConfigurationError,
    InvalidRequestError,
    MalformedJsonError,
    TokenServiceError,
)
from tokensvc.http.bodies import batch_decoder, decode_json
from tokensvc.http.facts import read_facts
from tokensvc.http.idempotency import request_ref
from tokensvc.http.problems import encode_problem
from tokensvc.http.queries import MAX_LIMIT, PAGE, parse_flag, query_of, stage_arn_text
from tokensvc.keyring.master_key import MASTER_KEY_BYTES, load_master_key
from tokensvc.ledger.cursor import decode_cursor, encode_cursor
from tokensvc.policy import Policy
from tokensvc.revocation.requests import (
    parse_ban_request,
    parse_ban_subject,
    parse_disconnect_request,
)
from tokensvc.settings import PREFIX, Settings, describe
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn, StageArn
from tokensvc.tokens.connection import parse_connection_request
from tokensvc.tokens.exchange import parse_exchange_request
from tokensvc.tokens.fields import parse_token_id, parse_user_id
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.reading import unverified_kid
from tokensvc.tokens.validate import parse_defaults, parse_wanted_token

REGIONS = frozenset({"eu-central-1"})
NOW = 1_790_000_000.0

bounded = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

MINT: dict[str, Any] = {
    "stageArn": stage_arn(),
    "userId": "ana",
    "role": "viewer",
    "duration": 60,
    "capabilities": ["SUBSCRIBE"],
    "attributes": {"team": "blue"},
    "issuer": "auto",
}
EXCHANGE = {
    **{name: MINT[name] for name in MINT if name not in ("role", "issuer")},
    "participantId": "p",
}
CONNECTION = {"region": "eu-central-1", "stageArn": stage_arn(), "userId": "a", "duration": 5}
DISCONNECT = {
    "stageArn": stage_arn(),
    "participantId": "p",
    "userId": "ana",
    "everybody": True,
    "reason": "rules",
    "ban": 60,
}
BAN = {
    "stageArn": stage_arn(),
    "userId": "ana",
    "participantId": "p",
    "everybody": True,
    "duration": 60,
    "until": "2030-01-01T00:00:00Z",
    "reason": "",
}
PARSERS: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "mint": (lambda body: parse_wanted_token(body, regions=REGIONS), MINT),
    "defaults": (lambda body: parse_defaults(body, regions=REGIONS), MINT),
    "exchange": (lambda body: parse_exchange_request(body, regions=REGIONS), EXCHANGE),
    "connection": (lambda body: parse_connection_request(body, regions=REGIONS), CONNECTION),
    "disconnect": (lambda body: parse_disconnect_request(body, regions=REGIONS), DISCONNECT),
    "ban": (lambda body: parse_ban_request(body, regions=REGIONS, now=NOW), BAN),
    "lift": (
        lambda body: parse_ban_subject(body, regions=REGIONS),
        {name: BAN[name] for name in ("stageArn", "userId", "participantId", "everybody")},
    ),
}


def told_well(error: TokenServiceError) -> None:
    """A refusal can be sent, is short, and names fields."""
    assert len(encode_problem(error, "id")) < 20_000
    assert len(error.detail) < 4_000
    for field in error.errors:
        assert field.code
        assert field.detail


@pytest.mark.parametrize("name", PARSERS)
@bounded
@given(data=st.data())
def test_a_request_is_parsed_or_refused_by_field(name: str, data: st.DataObject):
    parse, right = PARSERS[name]
    body = data.draw(near(right))
    try:
        parsed = parse(body)
    except InvalidRequestError as error:
        assert error.errors
        told_well(error)
    else:
        # What was taken can be written: to the database, to a token, to an answer.
        json.dumps(repr(parsed)).encode()
        assert "\\ud" not in ascii(parsed) or not _has_lone_surrogate(parsed)


def _has_lone_surrogate(value: object) -> bool:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return True
    return False


@bounded
@given(cut_and_joined(json.dumps(MINT).encode()))
def test_a_body_is_json_or_malformed(body: bytes):
    try:
        value = decode_json(body)
    except MalformedJsonError as error:
        told_well(error)
    else:
        # Duplicate keys apart, Python's decoder reads the same.
        assert json.loads(body) == value


@pytest.mark.parametrize("depth", [1_000, 16_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"tokens":['])
def test_depth_is_refused_and_not_recursed_into(depth: int, opening: bytes):
    for read in (decode_json, batch_decoder(10)):
        with pytest.raises((MalformedJsonError, InvalidRequestError)):
            read(opening * depth)


CUT = batch_decoder(3)


@bounded
@given(
    st.builds(
        lambda body: json.dumps(body).encode(),
        near({"tokens": [{}, MINT], "defaults": MINT}),
    )
    | cut_and_joined(b'{"defaults": {"duration": 1}, "tokens": [{}, {"a": [1]}, null]}')
)
def test_a_batch_is_cut_or_refused(body: bytes):
    try:
        batch = CUT(body)
    except (InvalidRequestError, MalformedJsonError) as error:
        told_well(error)
        return
    assert len(batch.tokens) <= 3
    # A raw item may still be no JSON in its depth; then it is refused as an item.
    for raw in (batch.defaults, *batch.tokens):
        with contextlib.suppress(MalformedJsonError):
            decode_json(raw)


QUERY = {
    "stageArn": stage_arn_text,
    "userId": parse_user_id,
    "participantId": parse_token_id("participantId"),
    "everybody": parse_flag("everybody"),
    **PAGE,
}
NAMES = st.sampled_from([*QUERY, "dryRun", "limit[]", ""])
SOME_VALUES = st.sampled_from(["", "true", "1", "1000", "1001", "%00", "%ff", "+", stage_arn()])


@bounded
@given(
    st.lists(st.tuples(NAMES, SOME_VALUES | TEXT.map(ascii)), max_size=30).map(
        lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode()
    )
    | st.binary(max_size=100)
)
def test_a_query_string_is_taken_whole_or_refused(query: bytes):
    request: Request[Any, Any, Any] = Request(_scope(query_string=query))
    try:
        found = query_of(request, QUERY, "a list")
    except InvalidRequestError as error:
        told_well(error)
        return
    assert set(found) <= set(QUERY)
    assert 1 <= found.get("limit", 1) <= MAX_LIMIT
    for value in found.values():
        str(value).encode()


def _scope(**fields: Any) -> Any:
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [],
        "query_string": b"",
        **fields,
    }


@bounded
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"idempotency-key", b"authorization", b"x-request-id"]),
            st.binary(max_size=300) | st.from_regex(rb"[!-~]{1,256}", fullmatch=True),
        ),
        max_size=4,
    )
)
def test_headers_are_taken_or_refused(headers: list[tuple[bytes, bytes]]):
    facts = read_facts(headers, 0.0)
    assert facts.request_id.isascii()
    assert 1 <= len(facts.request_id) <= 64
    assert not set(facts.request_id) & set("\r\n \"'<>")
    facts.caller_id = "caller"
    try:
        ref = request_ref(facts, "tokens", b"{}")
    except InvalidRequestError as error:
        told_well(error)
    else:
        assert (ref is None) == all(name != b"idempotency-key" for name, _ in headers)
    authorization = facts.headers.get(b"authorization")
    if authorization is not None:
        assert read_bearer(authorization.decode("latin-1")) is None


API_KEY = ApiKey("0caller", "s" * 43)


@bounded
@given(cut_and_joined(f"Bearer {API_KEY.reveal()}".encode()).map(lambda raw: raw.decode("latin-1")))
def test_an_authorization_is_read_as_exactly_one_key_or_none(text: str):
    found = read_bearer(text)
    if found == ("0caller", API_KEY.secret_sha256):
        scheme, _, key = text.partition(" ")
        assert scheme.lower() == "bearer"
        assert key.strip(" ") == API_KEY.reveal()


SELECTION = (stage_arn(), None, None)
CURSOR = encode_cursor(1_790_000_000, 17, SELECTION)


@bounded
@given(
    cut_and_joined(CURSOR.encode()).map(lambda raw: raw.decode("latin-1"))
    | TEXT
    | st.builds(encode_cursor, st.integers(), st.integers(), st.just(SELECTION))
)
def test_a_cursor_is_a_position_or_refused(cursor: str):
    try:
        position = decode_cursor(cursor, SELECTION)
    except InvalidRequestError as error:
        told_well(error)
        assert error.errors[0].field == "cursor"
    else:
        assert abs(position.exp) < 2**53
        assert abs(position.row_id) < 2**53


@bounded
@given(TEXT | cut_and_joined(stage_arn().encode()).map(lambda raw: raw.decode("latin-1")))
def test_an_arn_is_what_it_says_or_refused(text: str):
    for kind in (StageArn, PublicKeyArn):
        try:
            arn = kind.parse(text)
        except InvalidArnError:
            continue
        assert str(arn) == text
        assert text.isascii()
        assert len(text) <= 128


VARIABLES = [row.name for row in describe(Settings())]


@bounded
@given(
    st.dictionaries(
        st.sampled_from(VARIABLES) | st.sampled_from([f"{name}_FILE" for name in VARIABLES]),
        st.sampled_from(["", "0", "-1", "1e999", "nan", "true", "~nobody/x", "eu-central-1", "\n"])
        | TEXT.filter(lambda text: "\0" not in text).map(ascii),
        min_size=1,
        max_size=6,
    )
)
def test_settings_are_whole_or_refused_a_line_each(environ: dict[str, str]):
    try:
        loaded = Settings.load(environ)
    except ConfigurationError as error:
        for line in error.detail.splitlines():
            assert line.startswith(PREFIX), line
        return
    for row in describe(loaded):
        assert isinstance(row.value, str)


def _as_yaml(value: object) -> bytes:
    # JSON is YAML, and what Python writes of NaN is text there.
    return json.dumps(value).encode()


@bounded
@given(cut_and_joined(POLICY.encode()) | JSON.map(_as_yaml))
def test_a_policy_file_is_taken_or_refused_by_line(text: bytes):
    try:
        Policy.parse(text)
    except ConfigurationError as error:
        assert "line" in error.detail
    else:
        assert b"version" in text


@bounded
@given(content=cut_and_joined(b"A" * 43 + b"=\n"))
def test_a_master_key_file_is_a_key_or_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(0o600)
    try:
        key = load_master_key(path)
    except ConfigurationError as error:
        assert "\n" not in error.detail
        assert "AAAA" not in error.detail
    else:
        assert len(key) == MASTER_KEY_BYTES


TOKEN = (
    b"eyJhbGciOiJFUzM4NCIsInR5cCI6IkpXVCIsImtpZCI6ImFybjphd3M6aXZzOmV1LWNlbnRyYWwtMToxMjM0NTY3ODkw"
    b"MTI6cHVibGljLWtleS9hYmMifQ.eyJleHAiOjE3OTAwMDM2MDAsImlhdCI6MTc5MDAwMDAwMCwidmVyc2lvbiI6IjEuMCJ9"
    b".AAAA"
)


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


HEADER = {"alg": "ES384", "typ": "JWT", "kid": "arn:aws:ivs:eu-central-1:1:public-key/a"}
CLAIMS = {
    "exp": 1_790_003_600,
    "iat": 1_790_000_000,
    "jti": "p",
    "resource": stage_arn(),
    "topic": "stage1",
    "events_url": "wss://global.events.live-video.net",
    "whip_url": "https://x.whip.live-video.net",
    "capabilities": {"allow_publish": True},
    "attributes": {},
    "version": "1.0",
    "account_id": "123456789012",
    "region": "eu-central-1",
}


@settings(bounded, max_examples=200)
@given(
    text=cut_and_joined(TOKEN).map(lambda raw: raw.decode("latin-1"))
    | TEXT
    | st.builds(
        lambda header, claims, rest: f"{_segment(header)}.{_segment(claims)}.{rest}",
        near(HEADER),
        near(CLAIMS),
        st.sampled_from(["", "AAAA", "A" * 128, "=", "A.A"]),
    ),
    now=st.floats(0, 4e9),
    pem=st.sampled_from([None, "", "-----BEGIN PUBLIC KEY-----\n", "x"]),
)
def test_any_text_is_inspected(text: str, now: float, pem: str | None):
    found = inspect_token(text, now=now, public_key_for=lambda _: pem)
    assert not found.acceptable
    assert found.findings or found.signature != "valid"
    # It is sent, and printed.
    msgspec.json.encode([found.header, found.claims])
    for finding in found.findings:
        finding.detail.encode()
    unverified_kid(text)
