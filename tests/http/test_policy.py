"""Least privilege for each backend: the policy file over HTTP, for everything a caller may do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.http.support import REGION, Service, lifespan, problem_in, running, stage_arn
from tokensvc.errors import ConfigurationError, IvsError
from tokensvc.http.app import create_app

POLICY_REFRESH = 1.75
"""Unlike all other waits, so that a test can wake the one that looks at the file."""

CLOSED = "{version: 1, callers: {}}"
ROLES = """\
roles:
  host: {capabilities: [PUBLISH, SUBSCRIBE], duration: {default: 240, max: 720}, attributes: {kind: host}}
  viewer: {capabilities: [SUBSCRIBE], duration: 60}
"""
OWN_STAGE = f"""\
version: 1
{ROLES}
callers:
  all:
    stages: ["{stage_arn()}"]
    roles: [host, viewer]
    defaultRole: viewer
"""

Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    return tmp_path / "policy.yaml"


@pytest.fixture
def under(stopped: Service, policy_file: Path) -> Start:
    """Run the service under a policy."""

    @contextlib.asynccontextmanager
    async def run(policy: str) -> AsyncIterator[Service]:
        write(stopped, policy_file, policy)
        async with running(stopped) as service:
            yield service

    return run


def write(service: Service, path: Path, policy: str) -> None:
    path.write_text(policy)
    service.settings = dataclasses.replace(
        service.settings, policy_file=path, policy_refresh=POLICY_REFRESH
    )


async def send(
    service: Service, body: object, key: str, path: str = "/v1/tokens"
) -> httpx.Response:
    assert service.client is not None
    headers = {**service.authorization(), "idempotency-key": key}
    return await service.client.post(path, json=body, headers=headers)


def claims(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    return jwt.decode(answer.json()["token"], options={"verify_signature": False})


def fields(problem: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["field"], error["code"]) for error in problem["errors"]]


# --- closed by default ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tokens", {"stageArn": stage_arn()}),
        ("/v1/tokens", {"stageArn": stage_arn(), "issuer": "ivs"}),
        ("/v1/connection-tokens", {"region": REGION}),
        ("/v1/connection-tokens", {"stageArn": stage_arn()}),
        ("/v1/disconnects", {"stageArn": stage_arn(), "userId": "ana"}),
        ("/v1/bans", {"stageArn": stage_arn(), "userId": "ana"}),
        ("/v1/bans", {"userId": "ana"}),
        ("/v1/bans", {"participantId": "p1"}),
    ],
)
async def test_a_caller_that_the_file_does_not_name_gets_nothing(
    under: Start, path: str, body: dict[str, str]
):
    async with under(CLOSED) as service:
        problem = problem_in(await service.post(path, body), 403, "policy_denied")
        assert "no rule for the caller all" in problem["detail"]
        assert not service.ivs.calls["CreateParticipantToken"]
        assert (await service.get("/v1/tokens")).json()["tokens"] == []
        assert (await service.get("/v1/bans")).json()["bans"] == []


async def test_each_item_of_a_batch_is_denied_by_itself(under: Start):
    async with under(OWN_STAGE) as service:
        answer = await service.post(
            "/v1/tokens/batch",
            {"tokens": [{"stageArn": stage_arn()}, {"stageArn": stage_arn("stage2")}, {}]},
        )
        first, second, third = answer.json()["tokens"]
        assert first["capabilities"] == ["SUBSCRIBE"]
        assert second["problem"]["code"] == "policy_denied"
        assert second["problem"]["errors"][0]["field"] == "tokens[1].stageArn"
        assert third["problem"]["code"] == "invalid_request"


async def test_without_a_file_scopes_decide_and_the_log_says_so(service: Service, log: Any):
    assert (await service.mint())["capabilities"] == ["PUBLISH", "SUBSCRIBE"]
    answer = await service.post("/v1/tokens", {"stageArn": stage_arn(), "role": "viewer"})
    assert answer.status_code in (400, 403)
    assert "policy file" in answer.json()["detail"]
    assert "no_policy_file" in log.getvalue()


async def test_a_file_with_faults_stops_the_start(under: Start):
    with pytest.raises(ExceptionGroup) as raised:
        async with under("version: 1"):
            pass
    (reason,) = raised.value.exceptions
    assert isinstance(reason, ConfigurationError)
    assert reason.detail == "policy.yaml: line 1: callers: is required"


# --- roles ----------------------------------------------------------------------------------------


async def test_a_role_becomes_capabilities_duration_and_attributes(under: Start):
    async with under(OWN_STAGE) as service:
        body = {"stageArn": stage_arn(), "userId": "ana"}
        host = claims(await service.post("/v1/tokens", {**body, "role": "host"}))
        assert host["capabilities"] == {"allow_publish": True, "allow_subscribe": True}
        assert host["attributes"] == {"kind": "host"}
        assert host["exp"] == int(service.now) + 240 * 60
        left_out = claims(await service.post("/v1/tokens", body))
        assert left_out["capabilities"] == {"allow_subscribe": True}
        problem = problem_in(
            await service.post("/v1/tokens", {**body, "role": "viewer", "duration": 61}),
            403,
            "policy_denied",
        )
        assert fields(problem) == [("duration", "too_large")]
        assert "line 4" in problem["errors"][0]["detail"]
        assert problem["errors"][0]["limit"] == 60


async def test_a_participant_is_muted_by_exchanging_for_another_role(under: Start):
    async with under(OWN_STAGE) as service:
        host = await service.mint(role="host", userId="ana")
        body = {"participantId": host["participantId"], "role": "viewer"}
        after = claims(await service.post("/v1/tokens/exchange", body))
        assert after["jti"] == host["participantId"]
        assert after["capabilities"] == {"allow_subscribe": True}
        assert after["user_id"] == "ana"
        answer = await service.post("/v1/tokens/exchange", {**body, "capabilities": ["PUBLISH"]})
        assert fields(problem_in(answer, 403, "policy_denied")) == [
            ("capabilities", "capability_not_allowed")
        ]


async def test_nobody_exchanges_a_token_for_a_stage_of_others(under: Start, policy_file: Path):
    async with under(OWN_STAGE) as service:
        minted = await service.mint()
        await take_over(service, policy_file, OWN_STAGE.replace(stage_arn(), stage_arn("stage2")))
        answer = await service.post(
            "/v1/tokens/exchange", {"participantId": minted["participantId"]}
        )
        assert fields(problem_in(answer, 403, "policy_denied")) == [
            ("stageArn", "stage_not_allowed")
        ]


async def test_who_may_have_tokens_of_ivs_alone_exchanges_none(under: Start, policy_file: Path):
    async with under(OWN_STAGE) as service:
        minted = await service.mint()
        await take_over(service, policy_file, OWN_STAGE + "    issuer: [ivs]\n")
        answer = await service.post(
            "/v1/tokens/exchange", {"participantId": minted["participantId"]}
        )
        problem_in(answer, 409, "not_exchangeable")


async def test_who_may_have_tokens_signed_here_as_well_exchanges_them(under: Start):
    either = "    issuer: [ivs, local]\n    limits: {tokensPerSecond: 1, burst: 9}\n"
    async with under(OWN_STAGE + either) as service:
        minted = await service.mint(issuer="local")
        answer = await service.post(
            "/v1/tokens/exchange", {"participantId": minted["participantId"]}
        )
        assert claims(answer)["jti"] == minted["participantId"]
        # Asked twice whether it may, and counted once.
        assert answer.headers["ratelimit"] == '"caller";r=7;t=2'


async def test_a_stage_is_allowed_by_its_tag_while_ivs_can_be_asked(under: Start):
    policy = OWN_STAGE.replace(stage_arn(), "tenant=acme")
    async with under(policy) as service:
        service.ivs.tags[stage_arn()] = {"tenant": "acme"}
        await service.mint()
        answer = await service.post("/v1/tokens", {"stageArn": stage_arn("stage2")})
        problem_in(answer, 403, "policy_denied")
        service.ivs.fault = IvsError("IVS is out of order.")
        service.ivs.stages.add(stage_arn("stage3"))
        # What is known goes on; what is not is no permission.
        await service.mint()
        answer = await service.post("/v1/tokens", {"stageArn": stage_arn("stage3")})
        assert answer.status_code >= 500
        assert answer.json()["code"] == "ivs_error"


# --- limits ---------------------------------------------------------------------------------------

LIMITED = OWN_STAGE + "    limits: {tokensPerSecond: 0.5, burst: 2}\n"


async def test_limits_are_told_and_what_is_beyond_them_is_429(under: Start):
    async with under(LIMITED) as service:
        body = {"stageArn": stage_arn()}
        answer = await service.post("/v1/tokens", body)
        assert answer.headers["ratelimit-policy"] == '"caller";q=2;w=4'
        assert answer.headers["ratelimit"] == '"caller";r=1;t=2'
        await service.post("/v1/tokens", body)
        refused = await service.post("/v1/tokens", body)
        problem_in(refused, 429, "rate_limited")
        assert refused.headers["retry-after"] == "2"
        assert refused.headers["ratelimit"] == '"caller";r=0;t=4'
        service.now += 2
        assert (await service.post("/v1/tokens", body)).status_code == 201


async def test_a_batch_counts_its_items(under: Start):
    async with under(LIMITED) as service:
        answer = await service.post("/v1/tokens/batch", {"tokens": [{"stageArn": stage_arn()}] * 3})
        assert answer.json()["issued"] == 2
        assert answer.json()["tokens"][2]["problem"]["code"] == "rate_limited"
        assert answer.headers["ratelimit"] == '"caller";r=0;t=4'
        answer = await service.post("/v1/tokens", {"stageArn": stage_arn()})
        problem_in(answer, 429, "rate_limited")


async def test_a_repeated_request_is_not_counted_again(under: Start):
    async with under(LIMITED) as service:
        body = {"stageArn": stage_arn()}
        first = await send(service, body, "k-1")
        for _ in range(3):
            again = await send(service, body, "k-1")
            assert again.json()["participantId"] == first.json()["participantId"]
        exchange = {"participantId": first.json()["participantId"]}
        for _ in range(3):
            answer = await send(service, exchange, "k-2", "/v1/tokens/exchange")
            assert answer.status_code == 201, answer.text
        batch = {"tokens": [body]}
        problem = (await send(service, batch, "k-3", "/v1/tokens/batch")).json()["tokens"][0]
        assert problem["problem"]["code"] == "rate_limited"


async def test_a_process_has_its_share_of_a_limit(stopped: Service, policy_file: Path):
    """Scope of the limits: each worker counts for itself, with its part of them."""
    write(stopped, policy_file, LIMITED)
    app = create_app(
        stopped.settings,
        clock=lambda: stopped.now,
        gateway=stopped.ivs,
        sleep=stopped.sleeper.sleep,
        monotonic=lambda: stopped.now,
        limit_share=0.5,
    )
    async with lifespan(app):
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            stopped.client = client
            await stopped.at_rest()
            await stopped.mint()
            answer = await stopped.post("/v1/tokens", {"stageArn": stage_arn()})
            problem_in(answer, 429, "rate_limited")


# --- a change of the file -------------------------------------------------------------------------


def replace_file(path: Path, policy: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(policy)
    fresh.rename(path)


async def take_over(service: Service, path: Path, policy: str) -> None:
    """Put a file in place, and let it be read: two looks have to see the same."""
    replace_file(path, policy)
    for _ in range(2):
        await service.sleeper.wake(POLICY_REFRESH)


async def test_a_changed_file_is_taken_over_and_a_bad_one_is_not(
    under: Start, policy_file: Path, log: Any
):
    async with under(CLOSED) as service:
        body = {"stageArn": stage_arn()}
        assert (await service.post("/v1/tokens", body)).status_code == 403
        await take_over(service, policy_file, OWN_STAGE)
        assert (await service.post("/v1/tokens", body)).status_code == 201
        await take_over(service, policy_file, OWN_STAGE.replace("viewer]", "admin]"))
        assert (await service.post("/v1/tokens", body)).status_code == 201
        assert "policy_file_refused" in log.getvalue()
        ready = await service.get("/readyz", caller=None)
        assert ready.status_code == 200
        (check,) = [one for one in ready.json()["checks"] if one["name"] == "policy"]
        assert not check["ok"]
        assert not check["required"]
        metrics = (await service.get("/metrics", caller=None)).text
        assert "tokensvc_policy_file_refused 1.0" in metrics
        assert 'tokensvc_view_age_seconds{view="policy"} 0.0' in metrics
        await take_over(service, policy_file, CLOSED)
        assert (await service.post("/v1/tokens", body)).status_code == 403


async def test_a_repetition_is_held_against_the_policy_of_now(under: Start, policy_file: Path):
    async with under(OWN_STAGE) as service:
        body = {"stageArn": stage_arn()}
        first = await send(service, body, "k-1")
        assert first.json()["duration"] == 60
        await take_over(service, policy_file, OWN_STAGE.replace("duration: 60", "duration: 30"))
        problem_in(await send(service, body, "k-1"), 409, "not_repeatable")
        await take_over(service, policy_file, CLOSED)
        problem_in(await send(service, body, "k-1"), 403, "policy_denied")


# --- kicks, bans, connection tokens ---------------------------------------------------------------


async def test_kicks_and_bans_are_for_the_callers_own_stages(under: Start):
    async with under(OWN_STAGE) as service:
        mine, others = {"stageArn": stage_arn()}, {"stageArn": stage_arn("stage2")}
        for path, status in (("/v1/disconnects", 202), ("/v1/bans", 201)):
            answer = await service.post(path, {**mine, "userId": "ana"})
            assert answer.status_code == status, answer.text
            answer = await service.post(path, {**others, "userId": "ana"})
            assert fields(problem_in(answer, 403, "policy_denied")) == [
                ("stageArn", "stage_not_allowed")
            ]
        answer = await service.post("/v1/bans", {"userId": "ana"})
        assert fields(problem_in(answer, 403, "policy_denied")) == [("stageArn", "required")]
        answer = await service.delete("/v1/bans", userId="ana")
        problem_in(answer, 403, "policy_denied")
        answer = await service.delete("/v1/bans", userId="ana", stageArn=stage_arn())
        assert len(answer.json()["bans"]) == 1


async def test_a_participant_is_of_its_stage_whatever_stage_is_named(
    under: Start, policy_file: Path
):
    everywhere = OWN_STAGE.replace(stage_arn(), "*") + "    everywhere: true\n"
    async with under(everywhere) as service:
        minted = await service.mint(stageArn=stage_arn("stage2"))
        participant = {"participantId": minted["participantId"]}
        ban_id = (await service.post("/v1/bans", participant)).json()["banId"]
        user_ban = (await service.post("/v1/bans", {"userId": "ana"})).json()["banId"]
        await take_over(service, policy_file, OWN_STAGE)
        answers = [
            await service.post("/v1/disconnects", {**participant, "stageArn": stage_arn()}),
            await service.post("/v1/bans", participant),
            await service.delete("/v1/bans", **participant),
            await service.delete(f"/v1/bans/{ban_id}"),
            await service.delete(f"/v1/bans/{user_ban}"),
        ]
        for answer in answers:
            problem_in(answer, 403, "policy_denied")
        await take_over(service, policy_file, everywhere)
        for one in (ban_id, user_ban):
            assert (await service.delete(f"/v1/bans/{one}")).status_code == 200


def _damage_expiries(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE issued_tokens SET exp = 'garbage'")


async def test_a_damaged_row_keeps_nobody_from_being_kicked_by_who_may(under: Start):
    async with under(OWN_STAGE) as service:
        minted = await service.mint(stageArn=stage_arn())
        # Not on the event loop, which would keep a write that is under way from its end.
        await asyncio.to_thread(_damage_expiries, service.settings.data_dir / "tokensvc.db")
        kick = {"participantId": minted["participantId"], "stageArn": stage_arn()}
        assert (await service.post("/v1/disconnects", kick)).status_code == 202
        kick["stageArn"] = stage_arn("stage2")
        problem_in(await service.post("/v1/disconnects", kick), 403, "policy_denied")


async def test_connection_tokens_are_granted_by_their_own_rule(under: Start, policy_file: Path):
    async with under(OWN_STAGE) as service:
        path, body = "/v1/connection-tokens", {"stageArn": stage_arn()}
        problem_in(await service.post(path, body), 403, "policy_denied")
        granted = OWN_STAGE + "    connectionTokens: {default: 60, max: 120}\n"
        await take_over(service, policy_file, granted)
        minted = (await service.post(path, body)).json()
        assert minted["duration"] == 60
        answer = await service.post(path, {**body, "duration": 121})
        assert fields(problem_in(answer, 403, "policy_denied")) == [("duration", "too_large")]
        answer = await service.post(path, {"stageArn": stage_arn("stage2")})
        problem_in(answer, 403, "policy_denied")
        answer = await service.post(path, {"region": REGION})
        assert fields(problem_in(answer, 403, "policy_denied")) == [("stageArn", "required")]
        await take_over(service, policy_file, granted + "    limits: {perUserPerMinute: 1}\n")
        answer = await service.post(path, body)
        assert fields(problem_in(answer, 403, "policy_denied")) == [("userId", "required")]
        answers = [await service.post(path, {**body, "userId": "ana"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 429]
        # Nor does a repetition get what the policy gives no more.
        await take_over(service, policy_file, granted)
        raw, key = json.dumps(body).encode(), "a-key"
        assert (await service.send(path, raw, idempotency_key=key)).status_code == 201
        await take_over(service, policy_file, granted.replace("default: 60", "default: 30"))
        problem_in(await service.send(path, raw, idempotency_key=key), 409, "not_repeatable")
        await take_over(service, policy_file, OWN_STAGE)
        answer = await service.delete(f"{path}/{minted['tokenId']}")
        problem_in(answer, 403, "policy_denied")
        await take_over(service, policy_file, granted)
        answer = await service.delete(f"{path}/{minted['tokenId']}")
        assert answer.status_code == 202
        await take_over(service, policy_file, granted + "    everywhere: true\n")
        assert (await service.post(path, {"region": REGION})).status_code == 201


async def test_who_revokes_connection_tokens_of_other_callers_acts_everywhere(
    under: Start, policy_file: Path
):
    path = "/v1/connection-tokens"
    other = f"""\
  connector: {{stages: ["{stage_arn()}"], roles: [viewer], connectionTokens: 60}}
"""
    granted = OWN_STAGE + "    connectionTokens: 60\n"
    async with under(granted + other) as service:
        answer = await service.post(path, {"stageArn": stage_arn()}, caller="connector")
        token_id = answer.json()["tokenId"]
        answer = await service.delete(f"{path}/{token_id}")
        problem = problem_in(answer, 403, "policy_denied")
        assert "another caller" in problem["errors"][0]["detail"]
        await take_over(service, policy_file, granted + "    everywhere: true\n" + other)
        assert (await service.delete(f"{path}/{token_id}")).status_code == 202
