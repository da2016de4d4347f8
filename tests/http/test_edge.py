"""What every request gets: an id, a log line without secrets, headers that keep answers out of caches."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from tests.http.support import Service, stage_arn


async def test_a_request_id_is_echoed(service: Service):
    assert service.client is not None
    answer = await service.client.get("/healthz", headers={"x-request-id": "trace-1.A_b"})
    assert answer.headers["x-request-id"] == "trace-1.A_b"


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "a,b", "line\tbreak", "\xe9"])
async def test_a_request_id_that_is_not_fit_is_replaced(service: Service, given: str):
    assert service.client is not None
    answer = await service.client.get("/nowhere", headers={"x-request-id": given.encode("latin-1")})
    own = answer.headers["x-request-id"]
    assert own != given
    assert len(own) == 20
    assert answer.json()["requestId"] == own


async def test_two_requests_have_different_ids(service: Service):
    ids = {(await service.get("/healthz")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def test_the_log_finds_the_request_and_holds_no_secret(service: Service, log: io.StringIO):
    attributes = {"displayName": "a-telling-name"}
    answer = await service.post(
        "/v1/tokens",
        {"stageArn": stage_arn(), "userId": "telling-user", "attributes": attributes},
    )
    token = answer.json()["token"]
    await service.post("/v1/tokens/inspect", {"token": token})
    await service.post("/v1/tokens/batch", {"tokens": [{"stageArn": stage_arn()}]})
    await service.get("/v1/keys?api_key=query-secret")
    await service.get("/v1/tokens/path-secret/x")
    await service.post("/v1/tokens", {"stageArn": token})
    await service.send("/v1/tokens", token.encode())
    # The test's own client logs what it asks for.
    text = "\n".join(line for line in log.getvalue().splitlines() if '"httpx"' not in line)
    lines = [json.loads(line) for line in text.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
    assert line["event"] == "request"
    assert line["route"] == "/v1/tokens"
    assert line["status"] == 201
    assert line["caller"] in service.api_keys["all"]
    assert line["ms"] >= 0
    secret = service.api_keys["all"].split("_", 2)[2]
    for hidden in (
        token,
        token.split(".")[1],
        token.split(".")[2],
        secret,
        "telling-user",
        "a-telling-name",
        "query-secret",
        "path-secret",
        "rivate",
    ):
        assert hidden not in text


async def test_no_problem_repeats_a_secret(service: Service):
    token = (await service.post("/v1/tokens", {"stageArn": stage_arn()})).json()["token"]
    assert service.client is not None
    wrong = "Bearer tsk_000000000000_" + "S3cr3t" * 7 + "A"
    answers = [
        await service.client.post("/v1/tokens", json={}, headers={"authorization": wrong}),
        await service.post("/v1/tokens", {"stageArn": token}),
        await service.post("/v1/tokens", {"userId": [token], "stageArn": stage_arn()}),
        await service.post("/v1/tokens", {"issuer": token, "stageArn": stage_arn()}),
        await service.send("/v1/tokens", b'{"stageArn": ' + token.encode()),
        await service.post("/v1/tokens/batch", {"tokens": [{"stageArn": token}]}),
    ]
    for answer in answers:
        assert "S3cr3t" not in answer.text
        assert token[-40:] not in answer.text
        assert service.api_keys["all"] not in answer.text


async def test_what_a_request_binds_is_gone_after_it(service: Service, log: io.StringIO):
    await service.get("/healthz")
    structlog.get_logger("test").info("afterwards")
    assert "request_id" not in json.loads(log.getvalue().splitlines()[-1])
