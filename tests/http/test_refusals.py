"""Every refusal is an RFC 9457 problem that names field, limit and code. One service answers all."""

from __future__ import annotations

import json

import pytest

from tests.http.support import OTHER_REGION, Service, problem_in, stage_arn

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINT = {"stageArn": stage_arn()}


@pytest.mark.parametrize(
    ("changes", "field", "code", "limit"),
    [
        ({"stageArn": stage_arn(region=OTHER_REGION)}, "stageArn", "region_not_served", None),
        ({"stageArn": "arn:aws:ivs:eu-central-1:1:channel/x"}, "stageArn", "pattern", None),
        ({"stageArn": None}, "stageArn", "required", None),
        ({"userId": "u" * 129}, "userId", "too_long", 128),
        ({"userId": 7}, "userId", "type", None),
        ({"duration": 0}, "duration", "too_small", 1),
        ({"duration": 20_161}, "duration", "too_large", 20_160),
        ({"duration": "60"}, "duration", "type", None),
        ({"capabilities": ["ADMIN"]}, "capabilities[0]", "unknown_value", "PUBLISH, SUBSCRIBE"),
        ({"attributes": {"a": "x" * 1024}}, "attributes", "too_large", 1024),
        ({"attributes": {"a": 1}}, "attributes.a", "type", None),
        ({"issuer": "aws"}, "issuer", "unknown_value", "auto, local, ivs"),
        ({"stage": "x"}, "stage", "unknown_field", None),
    ],
)
async def test_a_bad_field_is_named_with_its_limit(
    shared: Service, changes: dict[str, object], field: str, code: str, limit: object
):
    answer = await shared.post("/v1/tokens", {**MINT, **changes})
    problem = problem_in(answer, 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem["errors"][0]["code"] == code
    if limit is not None:
        assert problem["errors"][0]["limit"] == limit
    assert field in problem["detail"]


async def test_all_bad_fields_are_named_at_once(shared: Service):
    answer = await shared.post("/v1/tokens", {"userId": 1, "duration": -1, "nonsense": True})
    problem = problem_in(answer, 400, "invalid_request")
    assert {error["field"] for error in problem["errors"]} == {
        "stageArn",
        "userId",
        "duration",
        "nonsense",
    }


async def test_an_unknown_stage_is_not_found(shared: Service):
    answer = await shared.post("/v1/tokens", {"stageArn": stage_arn("nowhere")})
    problem = problem_in(answer, 404, "stage_not_found")
    assert problem["errors"][0]["field"] == "stageArn"


async def test_a_body_too_large_is_refused_before_it_is_read(shared: Service):
    limit = shared.settings.max_body_bytes
    sent = await shared.call(
        {
            "headers": [
                (b"authorization", shared.authorization()["authorization"].encode()),
                (b"content-type", b"application/json"),
                (b"content-length", str(limit + 1).encode()),
            ]
        }
    )
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    problem = json.loads(sent[1]["body"])
    assert problem["code"] == "body_too_large"
    assert problem["errors"][0]["limit"] == limit


async def test_a_body_that_grows_too_large_is_refused_when_it_does(shared: Service):
    limit = shared.settings.max_body_bytes
    chunks = [{"type": "http.request", "body": b" " * 1000, "more_body": True}] * (
        limit // 1000 + 2
    )
    sent = await shared.call(
        {
            "headers": [
                (b"authorization", shared.authorization()["authorization"].encode()),
                (b"content-type", b"application/json"),
                (b"transfer-encoding", b"chunked"),
            ]
        },
        *chunks,
    )
    assert sent[0]["status"] == 413


async def test_a_body_of_exactly_the_limit_is_read(shared: Service):
    limit = shared.settings.max_body_bytes
    body = json.dumps(MINT).encode().ljust(limit)
    assert (await shared.send("/v1/tokens", body)).status_code == 201
    answer = await shared.send("/v1/tokens", body + b" ")
    problem_in(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=iso-8859-1",
        "application/jsonp",
        "application/json, text/plain",
    ],
)
async def test_another_content_type_is_refused(shared: Service, content_type: str):
    answer = await shared.send("/v1/tokens", json.dumps(MINT).encode(), content_type=content_type)
    problem_in(answer, 415, "unsupported_media_type")


async def test_json_may_say_that_it_is_utf8(shared: Service):
    answer = await shared.send(
        "/v1/tokens", json.dumps(MINT).encode(), content_type='Application/JSON; charset="UTF-8"'
    )
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("body", "byte"),
    [
        (b"", 0),
        (b"{", 1),
        (b'{"stageArn":', 12),
        (b"{'stageArn': 1}", 1),
        (b"{} {}", 4),
        (b"?", 0),
    ],
)
async def test_malformed_json_says_at_which_byte(shared: Service, body: bytes, byte: int):
    problem = problem_in(await shared.send("/v1/tokens", body), 400, "malformed_json")
    assert f"near byte {byte})" in problem["detail"]


@pytest.mark.parametrize("body", [b'{"stageArn": "\xff"}', b'{"\xc3(": 1}', b"\xff\xfe{}"])
async def test_bad_utf8_is_malformed(shared: Service, body: bytes):
    problem_in(await shared.send("/v1/tokens", body), 400, "malformed_json")


@pytest.mark.parametrize("body", [b"[" * 30_000, b'{"a":' * 6_000, b"[" * 3_000 + b"]" * 3_000])
@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/tokens/batch", "/v1/tokens/inspect"])
async def test_deep_nesting_is_refused_and_survived(shared: Service, path: str, body: bytes):
    answer = await shared.send(path, body)
    assert answer.status_code == 400
    assert answer.json()["code"] in {"malformed_json", "invalid_request"}


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"7", b"null", b"true"])
@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/tokens/batch", "/v1/tokens/inspect"])
async def test_json_that_is_no_object_is_refused(shared: Service, path: str, body: bytes):
    problem = problem_in(await shared.send(path, body), 400, "invalid_request")
    assert "object" in problem["detail"]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer tsk_0000_wrong",
        "Basic dXNlcjpwYXNz",
        "Bearer tsk_000000000000_" + "A" * 43,
        "\xff\xfe",
        "Bearer " + "x" * 10_000,
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/tokens"),
        ("POST", "/v1/tokens/batch"),
        ("POST", "/v1/tokens/inspect"),
        ("GET", "/v1/keys"),
        ("GET", "/v1/keys/k1"),
    ],
)
async def test_without_a_valid_api_key_nothing_is_done(
    shared: Service, method: str, path: str, authorization: str | None
):
    assert shared.client is not None
    headers = {"content-type": "application/json"}
    if authorization is not None:
        headers["authorization"] = authorization.encode("latin-1")  # type: ignore[assignment]
    answer = await shared.client.request(method, path, content=b"not even json", headers=headers)
    problem_in(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_authorization_that_is_sent_twice_is_not_the_first_one(shared: Service):
    right = shared.authorization()["authorization"].encode()
    for second in (right, b"Bearer other"):
        sent = await shared.call(
            {
                "headers": [
                    (b"authorization", right),
                    (b"authorization", second),
                    (b"content-type", b"application/json"),
                ]
            },
            {"type": "http.request", "body": json.dumps(MINT).encode()},
        )
        assert sent[0]["status"] == 401


async def test_a_content_type_that_is_sent_twice_is_refused(shared: Service):
    sent = await shared.call(
        {
            "headers": [
                (b"authorization", shared.authorization()["authorization"].encode()),
                (b"content-type", b"application/json"),
                (b"content-type", b"application/json"),
            ]
        },
        {"type": "http.request", "body": json.dumps(MINT).encode()},
    )
    assert sent[0]["status"] == 415


@pytest.mark.parametrize(
    ("caller", "method", "path"),
    [
        ("reader", "POST", "/v1/tokens"),
        ("reader", "POST", "/v1/tokens/batch"),
        ("minter", "POST", "/v1/tokens/inspect"),
        ("minter", "GET", "/v1/keys"),
        ("minter", "GET", "/v1/keys/k1"),
    ],
)
async def test_a_caller_without_the_scope_is_forbidden(
    shared: Service, caller: str, method: str, path: str
):
    assert shared.client is not None
    answer = await shared.client.request(
        method, path, json=MINT, headers=shared.authorization(caller)
    )
    assert "scope" in problem_in(answer, 403, "forbidden")["detail"]


async def test_a_path_that_is_not_there(shared: Service):
    for path in (
        "/",
        "/v1",
        "/v1/token",
        "/v1/tokens/x/y",
        "/schema/openapi.json",
        "/%00",
        "/v1//",
    ):
        problem_in(await shared.get(path), 404, "not_found")


async def test_a_method_that_the_route_does_not_take(shared: Service):
    assert shared.client is not None
    answer = await shared.client.put("/v1/tokens", json=MINT)
    problem_in(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "POST", "OPTIONS"}
    answer = await shared.client.delete("/v1/keys/k1")
    problem_in(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


async def test_a_client_that_goes_away_in_the_middle(shared: Service):
    sent = await shared.call(
        {
            "headers": [
                (b"authorization", shared.authorization()["authorization"].encode()),
                (b"content-type", b"application/json"),
            ]
        },
        {"type": "http.request", "body": b'{"stage', "more_body": True},
        {"type": "http.disconnect"},
    )
    assert sent[0]["status"] == 400
