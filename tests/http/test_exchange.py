"""Exchange: the same participant with new rights, or a refusal that says why."""

from __future__ import annotations

import asyncio
from typing import Any

import jwt
import pytest

from tests.http.support import NOW, OTHER_REGION, PATIENCE_SECONDS, Service, problem_in, stage_arn

STAYS = ("jti", "resource", "topic", "events_url", "whip_url", "version")


def claims_of(service: Service, token: str) -> dict[str, Any]:
    """Return the claims of a token whose signature verifies under the key that IVS holds."""
    pem = service.ivs.keys[jwt.get_unverified_header(token)["kid"]].public_key_pem
    options = {"verify_exp": False, "verify_iat": False}
    claims: dict[str, Any] = jwt.decode(token, pem, algorithms=["ES384"], options=options)
    return claims


async def refused(service: Service, body: dict[str, object], *words: str) -> None:
    """Expect an exchange to be refused for a reason that has these words in it."""
    answer = await service.post("/v1/tokens/exchange", body)
    problem = problem_in(answer, 409, "not_exchangeable")
    for word in words:
        assert word in problem["detail"]


async def test_exchange_keeps_the_participant_and_changes_the_rights(service: Service):
    minted = await service.mint(userId="ana", attributes={"team": "red"}, duration=60)
    # What was signed is kept, whatever IVS says of the stage now.
    service.ivs.whip = "https://moved.example"
    service.now += 100
    await service.sleeper.wake_copies()
    # The endpoints known before are still handed out while IVS is asked for new ones.
    whips = [claims_of(service, (await service.mint())["token"])["whip_url"]]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while whips[-1] == whips[0]:
            whips.append(claims_of(service, (await service.mint())["token"])["whip_url"])
    assert (whips[0], whips[-1]) == ("https://whip.example/stage1", "https://moved.example/stage1")
    answer = await service.post(
        "/v1/tokens/exchange",
        {
            "participantId": minted["participantId"],
            "capabilities": ["SUBSCRIBE"],
            "attributes": {"team": "blue"},
            "duration": 90,
        },
    )
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["participantId"] == minted["participantId"]
    before, after = claims_of(service, minted["token"]), claims_of(service, body["token"])
    assert {name: after[name] for name in STAYS} == {name: before[name] for name in STAYS}
    assert after["user_id"] == "ana"
    assert after["attributes"] == {"team": "blue"}
    assert after["capabilities"] == {"allow_subscribe": True}
    assert after["exp"] == int(NOW) + 100 + 5400
    assert body["exchangeable"] is True
    text = (await service.get("/metrics", caller=None)).text
    assert "tokensvc_tokens_exchanged_total 1.0" in text


async def test_exchange_of_an_exchanged_token_and_another_user_id(service: Service):
    minted = await service.mint(userId="ana")
    exchange = {"participantId": minted["participantId"], "stageArn": stage_arn()}
    renamed = (await service.post("/v1/tokens/exchange", {**exchange, "userId": "anna"})).json()
    assert claims_of(service, renamed["token"])["user_id"] == "anna"
    kept = (await service.post("/v1/tokens/exchange", exchange)).json()
    assert claims_of(service, kept["token"])["user_id"] == "anna"
    listed = (await service.get("/v1/tokens")).json()["tokens"]
    assert [token["tokenId"] for token in listed] == [minted["participantId"]] * 3


async def test_a_token_that_ivs_issued_is_refused_saying_why(service: Service):
    minted = await service.mint(issuer="ivs")
    assert minted["exchangeable"] is False
    await refused(service, {"participantId": minted["participantId"]}, "CreateParticipantToken")


async def test_an_expired_token_is_refused(service: Service):
    minted = await service.mint(duration=1)
    service.now += 61
    await service.sleeper.wake_copies()
    await refused(service, {"participantId": minted["participantId"]}, "expired")


async def test_who_is_being_disconnected_or_was_is_refused(service: Service):
    minted = await service.mint()
    service.ivs.join(minted["participantId"])
    exchange = {"participantId": minted["participantId"]}
    answer = await service.post("/v1/disconnects", {"stageArn": stage_arn(), **exchange})
    await refused(service, exchange, "being disconnected")
    await service.until_done(answer.json()["disconnectId"])
    await refused(service, exchange, "has been disconnected")


async def test_a_token_whose_key_was_deleted_is_refused(service: Service):
    minted = await service.mint()
    keys = (await service.get("/v1/keys")).json()["keys"]
    (key,) = [one for one in keys if one["arn"] == minted["keyArn"]]
    answer = await service.post(f"/v1/keys/{key['keyId']}/invalidate", {})
    assert answer.status_code == 200, answer.text
    await refused(service, {"participantId": minted["participantId"]}, "deleted")


@pytest.mark.parametrize("kind", ["unknown", "connection"])
async def test_what_is_no_participant_of_the_ledger_is_not_found(service: Service, kind: str):
    token_id = "nobody"
    if kind == "connection":
        answer = await service.post("/v1/connection-tokens", {"region": "eu-central-1"})
        token_id = answer.json()["tokenId"]
    answer = await service.post("/v1/tokens/exchange", {"participantId": token_id})
    problem_in(answer, 404, "not_found")


async def test_bad_fields_are_named(service: Service):
    minted = await service.mint()
    body = {"participantId": minted["participantId"], "stageArn": stage_arn("stage2")}
    problem = problem_in(await service.post("/v1/tokens/exchange", body), 400, "invalid_request")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [
        ("stageArn", "mismatch")
    ]
    body = {
        "stageArn": stage_arn(region=OTHER_REGION),
        "duration": 20_161,
        "userId": "u" * 129,
        "token": "x",
    }
    problem = problem_in(await service.post("/v1/tokens/exchange", body), 400, "invalid_request")
    assert {error["field"] for error in problem["errors"]} == {
        "participantId",
        "stageArn",
        "duration",
        "userId",
        "token",
    }
