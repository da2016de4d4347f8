"""Connection tokens over HTTP: signed as IVS wants them, in the ledger, and revoked for good."""

from __future__ import annotations

import dataclasses

import jwt
import pytest

from tests.http.support import (
    ACCOUNT,
    NOW,
    OTHER_REGION,
    REGION,
    Service,
    problem_in,
    running,
    stage_arn,
)
from tokensvc.errors import IvsUnavailableError


async def test_a_connection_token_has_exactly_the_claims_of_the_guide(service: Service):
    answer = await service.post("/v1/connection-tokens", {"region": REGION, "duration": 40_320})
    assert answer.status_code == 201, answer.text
    body = answer.json()
    kid = jwt.get_unverified_header(body["token"])["kid"]
    claims = jwt.decode(
        body["token"],
        service.ivs.keys[kid].public_key_pem,
        algorithms=["ES384"],
        options={"verify_exp": False, "verify_iat": False},
    )
    exp = int(NOW) + 40_320 * 60
    assert claims == {
        # Never more than 28 days apart, however far `iat` is set back for slow clocks.
        "exp": exp,
        "iat": exp - 2_419_200,
        "jti": body["tokenId"],
        "account_id": ACCOUNT,
        "region": REGION,
        "events_url": "wss://global.events.live-video.net",
        "version": "1.0",
    }
    assert (body["keyArn"], body["accountId"], body["duration"]) == (kid, ACCOUNT, 40_320)


async def test_a_stage_names_account_and_region(service: Service):
    answer = await service.post("/v1/connection-tokens", {"stageArn": stage_arn()})
    assert (answer.json()["region"], answer.json()["duration"]) == (REGION, 720)
    foreign = stage_arn().replace(ACCOUNT, "999999999999")
    problem = problem_in(
        await service.post("/v1/connection-tokens", {"stageArn": foreign}), 400, "invalid_request"
    )
    assert [(error["field"], error["limit"]) for error in problem["errors"]] == [
        ("stageArn", ACCOUNT)
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "region"),
        ({"region": OTHER_REGION}, "region"),
        ({"region": 5}, "region"),
        ({"region": OTHER_REGION, "stageArn": stage_arn()}, "region"),
        ({"region": REGION, "duration": 40_321}, "duration"),
        ({"region": REGION, "duration": 0}, "duration"),
        ({"region": REGION, "capabilities": []}, "capabilities"),
    ],
)
async def test_bad_fields_are_named(service: Service, body: dict[str, object], field: str):
    problem = problem_in(await service.post("/v1/connection-tokens", body), 400, "invalid_request")
    assert field in {error["field"] for error in problem["errors"]}


async def test_a_connection_token_counts_among_the_tokens_of_its_key(service: Service):
    body = (await service.post("/v1/connection-tokens", {"region": REGION})).json()
    keys = (await service.get("/v1/keys")).json()["keys"]
    (key,) = [key for key in keys if key["arn"] == body["keyArn"]]
    assert key["liveTokens"] == 1
    assert key["lastTokenExpiresAt"] == int(NOW) + 720 * 60


async def test_without_a_key_there_is_no_connection_token(stopped: Service):
    stopped.settings = dataclasses.replace(stopped.settings, regions=(REGION, OTHER_REGION))
    stopped.ivs.faulty_regions.add(OTHER_REGION)
    async with running(stopped) as service:
        answer = await service.post("/v1/connection-tokens", {"region": OTHER_REGION})
        problem_in(answer, 503, "no_signing_key")


async def test_a_revocation_is_stored_and_repeated_until_ivs_has_taken_it(service: Service):
    token_id = (await service.post("/v1/connection-tokens", {"region": REGION})).json()["tokenId"]
    service.ivs.fault = IvsUnavailableError("no answer")
    answer = await service.delete(f"/v1/connection-tokens/{token_id}")
    assert answer.status_code == 202, answer.text
    disconnect_id = answer.json()["disconnectId"]
    assert answer.headers["location"] == f"/v1/disconnects/{disconnect_id}"
    found = await service.until(disconnect_id, lambda found: found["participants"][0]["attempts"])
    assert found["done"] is False
    assert found["participants"][0]["lastError"] == "ivs_unavailable"
    service.ivs.fault = None
    done = await service.until_done(disconnect_id)
    assert service.ivs.revoked == [token_id]
    (one,) = done["participants"]
    assert (one["tokenId"], one["participantId"], one["state"]) == (
        token_id,
        None,
        "disconnected",
    )
    (row,) = (await service.get("/v1/tokens")).json()["tokens"]
    assert row["disconnectedAt"] is not None


async def test_what_is_no_connection_token_is_not_revoked(service: Service):
    participant = (await service.mint())["participantId"]
    for token_id in ("unknown", participant):
        answer = await service.delete(f"/v1/connection-tokens/{token_id}")
        problem_in(answer, 404, "not_found")
    answer = await service.delete("/v1/connection-tokens/x", caller="minter")
    problem_in(answer, 403, "forbidden")
    assert service.ivs.calls["RevokeConnectionToken"] == 0
