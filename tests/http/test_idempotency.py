"""`Idempotency-Key`: the same request again is answered by the same thing, on any replica."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

import httpx
import jwt
import pytest

from tests.http.support import REGION, Service, problem_in, running, stage_arn
from tokensvc.errors import IvsUnavailableError
from tokensvc.revocation.bans import REFRESH_SECONDS

STAGE = {"stageArn": stage_arn()}
UNVERIFIED = {"verify_signature": False}


async def send(
    service: Service, path: str, body: object, key: str = "k-1", caller: str = "all"
) -> httpx.Response:
    assert service.client is not None
    headers = {**service.authorization(caller), "idempotency-key": key}
    return await service.client.post(path, json=body, headers=headers)


def who_and_when(token: str) -> tuple[Any, ...]:
    claims = jwt.decode(token, options=UNVERIFIED)
    return claims["jti"], claims["iat"], claims["exp"]


async def rows(service: Service) -> list[str]:
    answer = await service.get("/v1/tokens")
    return [token["tokenId"] for token in answer.json()["tokens"]]


@pytest.mark.parametrize("later", [7, -0.7, -2, -8])
async def test_the_same_key_on_two_replicas_gives_the_same_participant(
    service: Service, other: Service, later: float
):
    """Whose clocks may be some seconds apart."""
    body = {**STAGE, "userId": "ana"}
    first = await send(service, "/v1/tokens", body)
    other.now += later
    again = await send(other, "/v1/tokens", body)
    assert (first.status_code, again.status_code) == (201, 201)
    assert who_and_when(first.json()["token"]) == who_and_when(again.json()["token"])
    assert first.json()["participantId"] == again.json()["participantId"]
    assert len(await rows(service)) == 1


async def test_of_two_at_the_same_time_both_get_the_same_participant(
    service: Service, other: Service
):
    answers = await asyncio.gather(
        *(send(replica, "/v1/tokens", STAGE) for replica in (service, other) * 4)
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({who_and_when(answer.json()["token"]) for answer in answers}) == 1
    assert len(await rows(service)) == 1


async def test_the_same_key_after_a_restart(stopped: Service):
    async with running(stopped) as service:
        first = await send(service, "/v1/tokens", STAGE)
    stopped.sleeper.waiting.clear()
    async with running(stopped) as service:
        again = await send(service, "/v1/tokens", STAGE)
    assert who_and_when(first.json()["token"]) == who_and_when(again.json()["token"])


async def test_no_token_is_stored(service: Service):
    token = (await send(service, "/v1/tokens", STAGE)).json()["token"]
    database = service.settings.data_dir / "tokensvc.db"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert "idempotency_records" in dump
    for segment in token.split("."):
        assert segment not in dump


async def test_a_key_is_used_by_one_body_one_route_and_one_caller(service: Service):
    first = (await send(service, "/v1/tokens", STAGE)).json()
    answer = await send(service, "/v1/tokens", {**STAGE, "userId": "ana"})
    problem_in(answer, 409, "idempotency_conflict")
    of_another = await send(service, "/v1/tokens", STAGE, caller="minter")
    assert of_another.json()["participantId"] != first["participantId"]
    elsewhere = await send(service, "/v1/connection-tokens", {"region": REGION})
    assert elsewhere.status_code == 201


async def test_the_window_ends(service: Service):
    first = (await send(service, "/v1/tokens", STAGE)).json()
    service.now += service.settings.idempotency_window
    await service.sleeper.wake_copies()
    again = await send(service, "/v1/tokens", {**STAGE, "duration": 5})
    assert again.status_code == 201, again.text
    assert again.json()["participantId"] != first["participantId"]


async def test_a_repetition_is_not_answered_for_who_was_disconnected(service: Service):
    minted = (await send(service, "/v1/tokens", STAGE)).json()
    participant = {"participantId": minted["participantId"]}
    await service.post("/v1/disconnects", {**STAGE, **participant})
    problem_in(await send(service, "/v1/tokens", STAGE), 409, "not_repeatable")


async def test_a_repetition_is_not_answered_to_who_is_banned(service: Service, other: Service):
    body = {**STAGE, "userId": "ana"}
    await send(service, "/v1/tokens", body)
    ban = (await service.post("/v1/bans", {"userId": "ana"})).json()
    await other.sleeper.wake(REFRESH_SECONDS)
    for replica in (service, other):
        problem = problem_in(await send(replica, "/v1/tokens", body), 403, "banned")
        assert problem["banId"] == ban["banId"]


async def test_a_batch_again_issues_nothing_new(service: Service, other: Service):
    body = {"defaults": STAGE, "tokens": [{"userId": "ana"}, {"duration": 0}, {"userId": "ben"}]}
    first = (await send(service, "/v1/tokens/batch", body)).json()
    again = (await send(other, "/v1/tokens/batch", body)).json()
    assert (first["issued"], first["failed"]) == (again["issued"], again["failed"]) == (2, 1)
    for one, two in zip(first["tokens"], again["tokens"], strict=True):
        assert one.get("participantId") == two.get("participantId")
        assert one.get("problem", {}).get("code") == two.get("problem", {}).get("code")
    assert len(await rows(service)) == 2


async def test_an_exchange_again_is_the_same_token(service: Service, other: Service):
    minted = await service.mint(userId="ana")
    body = {"participantId": minted["participantId"], "capabilities": ["SUBSCRIBE"]}
    first = await send(service, "/v1/tokens/exchange", body)
    other.now += 3
    again = await send(other, "/v1/tokens/exchange", body)
    assert (first.status_code, again.status_code) == (201, 201), again.text
    claims = [jwt.decode(one.json()["token"], options=UNVERIFIED) for one in (first, again)]
    assert claims[0] == claims[1]
    assert len(await rows(service)) == 2


async def test_a_connection_token_again_is_the_same(service: Service, other: Service):
    body = {"region": REGION}
    first = (await send(service, "/v1/connection-tokens", body)).json()
    again = (await send(other, "/v1/connection-tokens", body)).json()
    assert who_and_when(first["token"]) == who_and_when(again["token"])
    assert await rows(service) == [first["tokenId"]]


async def test_a_connection_token_that_is_being_revoked_is_not_given_again(
    service: Service, other: Service
):
    body = {"region": REGION}
    token_id = (await send(service, "/v1/connection-tokens", body)).json()["tokenId"]
    service.ivs.fault = IvsUnavailableError("no answer")
    revoked = (await service.delete(f"/v1/connection-tokens/{token_id}")).json()
    again = await send(other, "/v1/connection-tokens", body)
    assert "being revoked" in problem_in(again, 409, "not_repeatable")["detail"]
    service.ivs.fault = None
    await service.until_done(revoked["disconnectId"])
    again = await send(other, "/v1/connection-tokens", body)
    assert "has been revoked" in problem_in(again, 409, "not_repeatable")["detail"]


@pytest.mark.parametrize("path", ["/v1/disconnects", "/v1/bans"])
async def test_a_disconnect_or_ban_again_is_the_same_and_holds_where_it_is_answered(
    service: Service, other: Service, path: str
):
    body: dict[str, object] = {**STAGE, "userId": "ana"}
    if path == "/v1/disconnects":
        body["ban"] = 60
    first = await send(service, path, body)
    again = await send(other, path, body)
    assert first.status_code == again.status_code < 300
    for name in ("disconnectId", "banId"):
        assert first.json().get(name) == again.json().get(name)
    # The other replica has not read the bans since.
    answer = await other.post("/v1/tokens", {**STAGE, "userId": "ana"})
    assert problem_in(answer, 403, "banned")["banId"] == first.json()["banId"]
    assert len((await service.get("/v1/bans")).json()["bans"]) == 1
    conflict = await send(service, path, {**body, "reason": "another"})
    problem_in(conflict, 409, "idempotency_conflict")


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\t"])
async def test_a_bad_key_is_named(service: Service, key: str):
    answer = await service.send("/v1/tokens", json.dumps(STAGE).encode(), idempotency_key=key)
    problem = problem_in(answer, 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == ["Idempotency-Key"]
    assert await rows(service) == []
